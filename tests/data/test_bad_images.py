"""Images that break while a network trains: replaced the same way by any number of workers, counted, named, limited."""

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import cam
from gwsss_fast.config import DataConfig
from gwsss_fast.data.bad_images import AS_DRAWN, BadImages, substitutes
from gwsss_fast.data.loading import checked, make_loader
from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.data.torch_datasets import GroupDataset, SegmentationDataset
from gwsss_fast.data.transforms import SegmenterTransform, SquareTransform
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.batches import consecutive, epochs_of_batches, image_cache
from tests.command_line import fails, run_train

BAD = (3, 8)


@pytest.fixture
def split(tmp_path):
    """12 images, each of a colour of its own; 3 is cut off, 8 is a text file."""
    records = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(path)
        Image.fromarray(np.full((16, 16), 1 + number % 3, np.uint8)).save(tmp_path / f"mask_{number}.png")
        mask = tmp_path / f"mask_{number}.png"
        records.append(Record(f"image{number}", path, mask, labels=(number % 3,), where=f"list, line {number + 1}"))
    records[3].image.write_bytes(records[3].image.read_bytes()[:300])
    records[8].image.write_text("not found")
    return Split("train", ("a", "b", "c"), tuple(records))


def groups(split, limit, size=3, strategy="random"):
    sampler = GroupSampler(split.labels, size, strategy, 5)
    return GroupDataset(split, sampler, SquareTransform(8), 5, None, limit)


def batches_of(dataset, workers, steps=8, epoch_steps=4, tally=None):
    order = consecutive(len(dataset), 3)
    iterator = epochs_of_batches(dataset, lambda epoch: order, 0, epoch_steps, workers, False, tally)
    return [next(iterator) for _ in range(steps)]


def items(batch):
    return batch.items


def test_bad_images_are_replaced_the_same_way_by_any_number_of_workers(split):
    alone = batches_of(groups(split, 2), 0)
    for workers in (1, 2):
        for one, other in zip(alone, batches_of(groups(split, 2), workers), strict=True):
            assert all(torch.equal(items(one)[key], items(other)[key]) for key in items(one))
    seen = 0
    for number, batch in enumerate(map(items, alone)):
        drawn = torch.from_numpy(GroupSampler(split.labels, 3, "random", 5).epoch(number // 4))
        wanted = drawn[3 * (number % 4) : 3 * (number % 4) + 3]
        bad = torch.isin(wanted, torch.tensor(BAD))
        assert torch.equal(batch["replaced"], torch.where(bad, wanted, torch.tensor(AS_DRAWN)))
        assert torch.equal(batch["indices"][~bad], wanted[~bad])
        for group, images, labels in zip(batch["indices"].tolist(), batch["images"], batch["labels"], strict=True):
            assert len(set(group)) == 3  # not one that is in the group already
            assert set(BAD).isdisjoint(group)
            for index, image, row in zip(group, images, labels, strict=True):  # pixels and labels are the other's too
                assert torch.equal(image, SquareTransform(8)(Image.open(split.records[index].image).convert("RGB")))
                assert row.tolist() == split.labels[index].tolist()
        seen += int(bad.sum())
    assert seen >= 4  # each leads a group in both epochs


def test_a_substitute_shares_labels_and_depends_on_its_place_alone(split):
    found = list(substitutes(split.labels, 3, (1, 2)))
    assert sorted(found) == [index for index in range(12) if index != 3]
    assert {index % 3 for index in found[:3]} == {0}
    assert found == list(substitutes(split.labels, 3, (1, 2)))
    assert len({tuple(substitutes(split.labels, 3, (1, key))) for key in range(9)}) > 5


def test_without_a_limit_the_first_one_stops(split):
    with pytest.raises(GwsssError, match=r"^list, line \d+: image .*(3|8)\.png cannot be decoded"):
        batches_of(groups(split, None), 0)


def test_every_name_is_told_once_and_one_too_many_stops(split):
    told = []
    tally = BadImages(split, 2, told.append)
    batches_of(groups(split, 2), 1, tally=tally)
    assert len(told) == 2
    assert sum("3.png cannot be decoded" in line for line in told) == 1
    assert sum("8.png cannot be decoded" in line for line in told) == 1
    assert told[0].startswith("skipped (1 of at most 2): list, line ")
    assert sorted(tally.reasons) == list(BAD)
    with pytest.raises(
        GwsssError, match=r"2 images cannot be read, more than data.bad_image_limit = 1: image\d, image\d"
    ):
        batches_of(groups(split, 2), 0, tally=BadImages(split, 1, told.append))


def test_nothing_usable_is_said(split):
    for record in split.records[3:]:
        record.image.write_text("not found")
    with pytest.raises(GwsssError, match=r"no usable image: none of 5 drawn for one place can be read; .*\.png"):
        batches_of(groups(split, 4), 0)
    with pytest.raises(GwsssError, match=r"no usable image: none of 1 drawn"):
        groups(split, 4, size=12)[0]  # all others are in the group


def test_segmentation_pairs_are_replaced_as_pairs(split):
    split.records[5].mask.write_bytes(b"")
    Image.new("L", (3, 3)).save(split.records[6].mask)
    bad = {3, 5, 6, 8}
    alone = SegmentationDataset(split, SegmenterTransform(8), 5, None, None, 4)
    found = []
    for workers in (0, 1):
        loader = make_loader(alone, workers=workers, batch_size=4)
        found.append({key: torch.cat([batch[key] for batch in checked(loader)]) for key in alone[0]})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    for position, (index, replaced, mask) in enumerate(
        zip(found[0]["index"].tolist(), found[0]["replaced"].tolist(), found[0]["mask"], strict=True)
    ):
        assert (index == position) == (position not in bad)
        assert replaced == (position if position in bad else AS_DRAWN)
        assert set(mask.unique().tolist()) - {255} == {1 + index % 3}
    told = []
    BadImages(split, 4, told.append).note(found[0])
    assert len(told) == 4
    assert "or its mask could not be used" in told[1]


def test_an_epoch_without_a_batch_is_said(split):
    iterator = epochs_of_batches(groups(split, 2), lambda epoch: [], 0, 4, 0, False)
    with pytest.raises(GwsssError, match="epoch 1 has no batch: no group or image of 12 can be used"):
        next(iterator)


def test_a_cache_in_memory_leaves_bad_images_to_the_data_set(split):
    with pytest.raises(GwsssError, match=r"image .*(3|8)\.png cannot be decoded"):
        image_cache(split, DataConfig(cache_mb=1))
    cache = image_cache(split, DataConfig(cache_mb=1, on_bad_image="skip"))
    split.records[0].image.unlink()
    assert cache.read(split.records[0]).size == (16, 16)
    with pytest.raises(GwsssError, match=r"3\.png"):
        cache.read(split.records[3])


@pytest.mark.parametrize("strategy", ["greedy", "one-common", "random"])
def test_images_without_any_label_are_drawn_too(strategy):
    labels = np.zeros((9, 4), np.uint8)
    labels[:3, 1] = 1
    sampler = GroupSampler(labels, 3, strategy)
    for drawn in (sampler.epoch(0), sampler.cover(0)):
        assert {len(set(group)) for group in drawn.tolist()} == {3}
        assert set(drawn.ravel().tolist()) == set(range(9))
    assert GroupSampler(np.zeros((4, 0)), 2, strategy).epoch(0).shape == (4, 2)


def break_images(data, *numbers):
    for number in numbers:
        path = data / f"JPEGImages/image_{number:03d}.jpg"
        path.write_bytes(path.read_bytes()[:-300])


def test_a_run_leaves_out_what_cannot_be_read(small_voc, tmp_path, capsys):
    break_images(small_voc, 3, 7)
    assert run_train(small_voc, tmp_path / "run", "--on-bad-image", "skip", "--stage", "classifier") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot be decoded" in line]
    assert len(lines) == 2
    assert all(line.startswith("left out: ") for line in lines)
    assert cam.main(["--run", str(tmp_path / "run")]) == 0
    assert len(list((tmp_path / "run/cams").glob("*.npy"))) == 10
    limit = ("--on-bad-image", "skip", "--data.bad-image-limit", "1")
    fails(capsys, run_train(small_voc, tmp_path / "two", *limit), "more than data.bad_image_limit = 1", "image_007.jpg")
    break_images(small_voc, 13)  # one of val: its score would be another
    fails(capsys, run_train(small_voc, tmp_path / "three", "--on-bad-image", "skip"), "image_013.jpg")


def test_images_that_break_while_training_are_replaced_and_told(small_voc, tmp_path, capsys):
    break_images(small_voc, 3, 7)
    options = ["--on-bad-image", "skip", "--data.verify", "false", "--stage", "classifier", "--max-steps", "6"]
    assert run_train(small_voc, tmp_path / "run", *options) == 0
    text = capsys.readouterr().err
    assert "skipped (2 of at most 20)" in text
    told = (tmp_path / "run/logs/bad_images.txt").read_text()
    assert all(f"image_00{number}.jpg cannot be decoded" in told for number in (3, 7))
    fails(capsys, run_train(small_voc, tmp_path / "two", *options, "--data.bad-image-limit", "1"), "image_00", "can")


def test_a_data_set_without_a_usable_image(small_voc, tmp_path, capsys):
    break_images(small_voc, *range(12))
    fails(capsys, run_train(small_voc, tmp_path / "run", "--on-bad-image", "skip"), "no usable image: none of the 12")
