"""The image cache on disk: same pixels, bounded, shared by processes, unharmed by whatever happens to its files."""

import contextlib
import multiprocessing
import os
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast.config import DataConfig
from gwsss_fast.data import image_cache as module
from gwsss_fast.data.image_cache import DiskCache
from gwsss_fast.data.loading import checked, make_loader
from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.data.torch_datasets import GroupDataset
from gwsss_fast.data.transforms import SquareTransform
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.batches import consecutive, epochs_of_batches, image_cache
from tests.command_line import run_train

BYTES = 40 * 30 * 3 + 128  # of one image in the folder


@pytest.fixture
def records(tmp_path):
    made = []
    for number in range(12):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
        made.append(Record(str(number), path, labels=(number % 3,)))
    return made


def megabytes(images):
    return images * BYTES / 2**20


def files(folder):
    return sorted(path for path in folder.glob("*/*"))


def used(folder):
    return sum(path.stat().st_size for path in files(folder))


def pixels(record):
    with Image.open(record.image) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def no_decoding(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", lambda path: pytest.fail(f"{path} was decoded"))
        yield


def test_an_image_is_decoded_once_for_all_processes_and_runs(records, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache", 1)
    for record in records:
        assert np.array_equal(np.asarray(cache.read(record)), pixels(record))
    assert used(tmp_path / "cache") == 12 * BYTES
    with no_decoding(monkeypatch):
        for other in (cache, DiskCache(tmp_path / "cache", 1)):
            assert all(np.array_equal(np.asarray(other.read(record)), pixels(record)) for record in records)


def test_an_image_that_changes_is_decoded_anew(records, tmp_path):
    cache = DiskCache(tmp_path / "cache", 1)
    before = np.asarray(cache.read(records[0]))
    Image.fromarray(255 - before).save(records[0].image)
    facts = records[0].image.stat()
    os.utime(records[0].image, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10))
    assert np.array_equal(np.asarray(cache.read(records[0])), 255 - before)
    records[1].image.unlink()
    with pytest.raises(GwsssError, match="does not exist"):
        cache.read(records[1])


def test_it_keeps_to_its_size_and_what_is_not_used_makes_room(records, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    first = DiskCache(folder, megabytes(5.5))
    for record in records:
        first.read(record)
    assert used(folder) == 5 * BYTES  # those in use stay: throwing them out would help nobody
    for path in files(folder):
        os.utime(path, (1, 1))  # of a run long ago
    second = DiskCache(folder, megabytes(5.5))
    second.read(records[0])
    for record in records[6:]:
        second.read(record)
        assert used(folder) <= 5.5 * BYTES
    with no_decoding(monkeypatch):
        for record in (records[0], *records[6:10]):
            second.read(record)
    assert DiskCache(folder, megabytes(0.5)).read(records[3]).size == (40, 30)
    DiskCache(tmp_path / "tiny", megabytes(0.5)).read(records[3])
    assert not files(tmp_path / "tiny")


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\0\x10\0{'descr': ('|u1'", None])
def test_damaged_files_are_made_again(records, tmp_path, content):
    cache = DiskCache(tmp_path / "cache", 1)
    cache.read(records[0])
    (path,) = files(tmp_path / "cache")
    if content is None:
        np.save(path, np.zeros((30, 40), np.uint8))
    else:
        path.write_bytes(content or path.read_bytes()[:200])
    (tmp_path / "cache" / "bytes").write_bytes(b"\xff\xfe9")
    for _ in range(2):
        assert np.array_equal(np.asarray(cache.read(records[0])), pixels(records[0]))
    assert path.stat().st_size == BYTES


def test_leftovers_of_a_killed_process_go(records, tmp_path):
    DiskCache(tmp_path / "cache", 1).read(records[0])
    (path,) = files(tmp_path / "cache")
    (path.parent / ".half.npy").write_bytes(bytes(500_000))
    (tmp_path / "cache" / "bytes").write_text("rubbish")
    DiskCache(tmp_path / "cache", 1)
    assert files(tmp_path / "cache") == [path]
    assert (tmp_path / "cache" / "bytes").read_text() == str(BYTES)


def test_it_survives_being_deleted(records, tmp_path):
    cache = DiskCache(tmp_path / "cache", 1)
    for _ in range(2):
        for record in records[:3]:
            assert np.array_equal(np.asarray(cache.read(record)), pixels(record))
        assert used(tmp_path / "cache") == 3 * BYTES
        for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "cache").rmdir()


def test_a_full_disk_is_no_harm(records, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device.*going on without it"):
        cache.read(records[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert np.array_equal(np.asarray(cache.read(records[1])), pixels(records[1]))
    assert not files(tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(GwsssError, match=r"cache folder .*file cannot be used.*data\.cache_dir"):
        DiskCache(tmp_path / "file", 1)


class Hesitant(DiskCache):
    """Takes its time between reading how much is used and writing it."""

    def _note(self, total):
        time.sleep(0.005)
        super()._note(total)


def _fill(folder, records, seed, failures):
    try:
        cache = Hesitant(folder, megabytes(8.5))
        for index in np.random.default_rng(seed).integers(0, len(records), 80).tolist():
            assert np.array_equal(np.asarray(cache.read(records[index])), pixels(records[index]))
            total = 0
            for path in files(folder):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
            assert total <= 8.5 * BYTES
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_several_processes_at_once(records, tmp_path):
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    crowd = [context.Process(target=_fill, args=(tmp_path / "cache", records, seed, failures)) for seed in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in crowd] == [0, 0, 0, 0]
    assert used(tmp_path / "cache") == 8 * BYTES


def test_training_takes_it_and_workers_share_it(records, tmp_path, monkeypatch):
    split = Split("train", ("a", "b", "c"), tuple(records))
    config = DataConfig(cache_dir=str(tmp_path / "cache"), cache_mb=1)

    def epoch(cache, workers):
        dataset = GroupDataset(split, GroupSampler(split.labels, 3), SquareTransform(8), 0, cache)
        return torch.cat([batch["images"] for batch in checked(make_loader(dataset, workers=workers, batch_size=4))])

    expected = epoch(None, 0)
    cache = image_cache(split, config)
    assert isinstance(cache, DiskCache)
    assert torch.equal(epoch(cache, 2), expected)
    with no_decoding(monkeypatch):
        assert torch.equal(epoch(cache, 1), expected)


def test_the_option(small_voc, tmp_path):
    options = ["--data.cache-dir", str(tmp_path / "cache"), "--stage", "classifier", "--max-steps", "4"]
    assert run_train(small_voc, tmp_path / "run", *options) == 0
    assert len(files(tmp_path / "cache")) >= 8  # those drawn in four steps


class Slow:
    """A sampler that notes who asks it for which epoch."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 12

    def epoch(self, epoch):
        self.asked.append((epoch, threading.current_thread() is threading.main_thread()))
        return np.random.default_rng(epoch).integers(0, 12, (12, 2))


def test_the_next_epoch_is_drawn_while_one_runs(records):
    split = Split("train", ("a", "b", "c"), tuple(records))
    ahead, plain = (GroupDataset(split, Slow(), SquareTransform(8)) for _ in range(2))
    for epoch in (1, 2, 5):  # the last one is another than was prepared
        ahead.prepare_epoch({1: 1, 2: 2}.get(epoch, 3))
        ahead.prepare_epoch(9)  # one at a time
        for dataset in (ahead, plain):
            dataset.set_epoch(epoch)
        assert all(torch.equal(ahead[place]["indices"], plain[place]["indices"]) for place in range(12))
    assert ahead._sampler.asked == [(0, True), (1, False), (2, False), (3, False), (5, True)]


def test_the_training_has_it_drawn_ahead(records):
    split = Split("train", ("a", "b", "c"), tuple(records))
    dataset = GroupDataset(split, Slow(), SquareTransform(8))
    batches = epochs_of_batches(dataset, lambda epoch: consecutive(12, 4), 0, 3, 0, False)
    found = [next(batches).items["indices"] for _ in range(9)]
    assert dataset._sampler.asked[:3] == [(0, True), (1, False), (2, False)]
    for epoch in range(3):
        assert torch.equal(torch.cat(found[3 * epoch : 3 * epoch + 3]), torch.from_numpy(Slow().epoch(epoch)))
