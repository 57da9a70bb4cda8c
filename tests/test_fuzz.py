"""Thousands of broken files: each is read, or is a GwsssError; never another exception, a hang or a large allocation.

Hypothesis makes what has structure, and a seed; random damage to the bytes of a whole file comes from that seed.
`GWSSS_FUZZ=20 python -m pytest tests/test_fuzz.py` makes twenty times as many inputs, other ones each time.
"""

import functools
import io
import os
import pickle
import resource
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gwsss_fast.data.dataset import open_dataset
from gwsss_fast.data.folder import open_csv
from gwsss_fast.data.images import (
    IGNORE,
    MAX_MEGAPIXELS,
    read_image,
    read_mask,
    read_saliency,
    read_size,
    set_pixel_limit,
)
from gwsss_fast.data.label_files import load_pickled_dict, read_cls_labels
from gwsss_fast.data.label_sources import from_xml
from gwsss_fast.data.lists import read_list
from gwsss_fast.data.map_files import read_map_file
from gwsss_fast.data.records import Record
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.interchange import load_maps
from gwsss_fast.training.checkpoints import load_checkpoint, save_checkpoint

TIMES = int(os.environ.get("GWSSS_FUZZ", "0"))
SECONDS, MEGABYTES = 60, 300  # of one test at most, the second beyond what the process had
DAMAGED = 40  # files made from each seed


def fuzz(examples):
    """Settings of a test; by default the same inputs each time."""
    return settings(
        max_examples=examples * max(TIMES, 1),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _bounded():
    """No hang, and no large allocation, however many examples a test has."""

    def late(*_):
        raise TimeoutError("one of the inputs takes too long")

    set_pixel_limit(4)  # an image of as many may be decoded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS * max(TIMES, 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        set_pixel_limit(MAX_MEGAPIXELS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MEGABYTES


def survives(read, *arguments, **options):
    """What `read` gives; None when it refuses."""
    try:
        return read(*arguments, **options)
    except GwsssError:
        return None


def damaged(data, seed, count=DAMAGED):
    """`count` variants of a file: bytes changed, cut off, doubled, moved, or set to what is large or negative."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        content = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            kind, at = rng.integers(6), int(rng.integers(len(content) + 1))
            size = int(rng.integers(1, 9))
            if kind == 0:
                content[at : at + 1] = rng.bytes(1)
            elif kind == 1:
                content[at : at + size] = rng.bytes(size)
            elif kind == 2:
                content[at : at + size] = rng.choice([b"\xff", b"\x7f", b"\x00", b"\x80"]) * size
            elif kind == 3:
                del content[at : at + size if rng.integers(2) else None]
            elif kind == 4:
                content[at:at] = content[at : at + 4 * size]
            else:
                content[at:at] = rng.bytes(size)
        yield bytes(content)


SEEDS = st.integers(0, 2**32)
NAMES = ["x", "y", "2007_000032", "x.jpg", "/JPEGImages/x.jpg", "SegmentationClass/x.png", "..", "/", "../../etc/x"]
ODD = ["0", "1", "7", "-1", "1e3", "9" * 30, "9" * 5000, "n" * 400, "\u0663", "a\0b", "x.png,a|b", '"', "|", ","]
LINES = st.builds(str.join, st.sampled_from([" ", ",", "\t"]), st.lists(st.sampled_from(NAMES + ODD), max_size=4))
TEXTS = st.lists(st.one_of(LINES, LINES, st.text(max_size=20)), max_size=6).map("\n".join)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Two images of VOC layout with masks and a file of labels."""
    root = tmp_path_factory.mktemp("voc")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in ("x", "y"):
        Image.new("RGB", (8, 6)).save(root / f"JPEGImages/{name}.jpg")
        Image.new("L", (8, 6), 1).save(root / f"SegmentationClass/{name}.png")
    (root / "classes.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("x\n")
    return root


@given(TEXTS, SEEDS)
@fuzz(25)
def test_lists(voc, text, seed):
    path = voc / "ImageSets/Segmentation/train.txt"
    whole = b"x 0\ny 1\n/JPEGImages/x.jpg /SegmentationClass/x.png\nx.jpg\n"
    for content in (text.encode("utf-8", "surrogatepass"), *damaged(whole + text.encode("utf-8", "replace"), seed, 12)):
        path.write_bytes(content)
        for entry in survives(read_list, path) or ():
            assert all(label >= 0 for label in entry.labels or ())
        survives(open_dataset, voc)
        survives(open_dataset, voc, on_fault=lambda error: None)


@given(TEXTS, SEEDS)
@fuzz(30)
def test_csv_files(voc, text, seed):
    path = voc / "JPEGImages/train.csv"
    for content in (text.encode("utf-8", "surrogatepass"), *damaged(b"file,classes\nx.jpg,a|b\ny.jpg,b\n", seed, 20)):
        path.write_bytes(content)
        found = survives(open_csv, path)
        if found is not None:
            assert all(set(record.labels) <= set(range(len(found.classes))) for record in found.training.records)
        survives(open_csv, path, on_fault=lambda error: None)


@given(TEXTS, SEEDS)
@fuzz(10)
def test_class_names_and_annotations(voc, text, seed):
    path = voc / "classes.txt"
    before = path.read_text()
    try:
        for content in (text.encode("utf-8", "surrogatepass"), *damaged(b"background\na\nb\n", seed, 5)):
            path.write_bytes(content)
            survives(open_dataset, voc)
    finally:
        path.write_text(before)
    annotation = b"<?xml version='1.0' encoding='utf-8'?><annotation><object><name>a</name></object></annotation>"
    source = from_xml(voc, ("a", "b"))
    for content in damaged(annotation, seed):
        (voc / "x.xml").write_bytes(content)
        survives(source.lookup, Record("x", voc / "JPEGImages/x.jpg"))


IDS = st.one_of(st.from_regex(r"\d{4}_\d{6}", fullmatch=True), st.integers(2_007_000_000, 2_012_000_000), st.integers())
VECTORS = st.one_of(
    st.lists(st.integers(0, 1), min_size=3, max_size=3).map(np.array),
    st.lists(st.integers(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(), max_size=4).map(np.array),
    st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)), st.lists, max_leaves=5),
)
ODD_KEYS = st.one_of(st.text(max_size=4), st.floats(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))


@given(st.dictionaries(st.one_of(IDS, IDS, ODD_KEYS), VECTORS, max_size=4), st.integers(0, 5))
@fuzz(150)
def test_label_files_of_any_content(tmp_path_factory, content, protocol):
    path = tmp_path_factory.getbasetemp() / "labels.npy"
    write_npy(path, pickle.dumps(np.array(content, object), protocol))
    for image, vector in (survives(read_cls_labels, path) or {}).items():
        assert isinstance(image, str)
        assert vector.dtype == np.uint8
        assert set(vector.tolist()) <= {0, 1}
    survives(read_map_file, path)


def write_npy(path, pickled):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickled)


@functools.cache
def label_files():
    """Whole files of labels and of maps, as bytes."""
    vector = np.array([1.0, 0, 1], np.float32)
    maps = np.random.default_rng(0).random((2, 4, 6)).astype(np.float32)
    contents = [
        {"2007_000032": vector, "2011_003276": vector},
        {2007000032: vector, 2011003276: vector},
        {"keys": np.array([0, 2]), "cam": maps, "size": np.array([8, 12]), "initial": maps, "graph": maps},
        {"keys": torch.tensor([0, 2]), "cam": torch.from_numpy(maps), "high_res": maps},
        {0: maps[0], 2: maps[1]},
    ]
    return [pickle.dumps(np.array(content, object), protocol) for content in contents for protocol in (0, 2, 5)]


@given(SEEDS)
@fuzz(3)
def test_damaged_label_files(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    for whole in label_files():
        for content in damaged(whole, seed, 16):
            write_npy(path, content)
            survives(read_cls_labels, path)
            maps = survives(read_map_file, path)
            assert maps is None or all(len(planes) == len(maps.keys) for planes in maps.maps.values())
    for content in damaged(path.read_bytes()[:128] + whole, seed):  # the header of the .npy file too
        path.write_bytes(content)
        survives(load_pickled_dict, path)


@functools.cache
def pictures():
    """Small images of every format and mode, as bytes with their suffix."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8))
    found = []
    for suffix, modes in {
        "jpg": ("RGB", "L", "CMYK"),
        "png": ("RGB", "L", "P", "RGBA", "1", "I;16"),
        "webp": ("RGB", "RGBA"),
        "bmp": ("RGB", "P"),
        "gif": ("P",),
        "tiff": ("RGB", "L"),
    }.items():
        for mode in modes:
            buffer = io.BytesIO()
            image = noise.convert("L").convert("I;16") if mode == "I;16" else noise.convert(mode)
            image.save(buffer, format={"jpg": "JPEG"}.get(suffix, suffix.upper()))
            found.append((suffix, buffer.getvalue()))
    return found


@given(SEEDS, SEEDS)
@fuzz(3)
def test_damaged_images(tmp_path_factory, seed, header):
    folder = tmp_path_factory.getbasetemp()
    for suffix, whole in pictures():
        path = folder / f"damaged.{suffix}"
        # Most damage falls on the header, where sizes are.
        heads = (head + whole[40:] for head in damaged(whole[:40], header, 8))
        for content in (*damaged(whole, seed, 8), *heads):
            path.write_bytes(content)
            image = survives(read_image, path)
            assert image is None or image.mode == "RGB"
            size = survives(read_size, path)
            assert image is None or size == image.size
            saliency = survives(read_saliency, path)
            assert saliency is None or (saliency.min() >= 0 and saliency.max() <= 1)
            mask = survives(read_mask, path, 3)
            assert mask is None or set(np.unique(mask).tolist()) <= {0, 1, 2, 3, IGNORE}


@given(
    st.sampled_from(["L", "P", "RGB", "I;16", "1", "LA"]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 300),
    st.integers(0, 254),
)
@fuzz(150)
def test_masks_of_any_content(tmp_path_factory, mode, size, value, classes):
    path = tmp_path_factory.getbasetemp() / "mask.png"
    if mode == "I;16":
        image = Image.fromarray(np.full(size[::-1], value, np.uint16))
    else:
        image = Image.new("L", size, min(value, 255)).convert(mode)
    image.save(path)
    mask = survives(read_mask, path, classes)
    if mask is not None:
        assert mask.shape == size[::-1]
        assert all(number <= classes or number == IGNORE for number in np.unique(mask).tolist())


@given(SEEDS)
@fuzz(3)
def test_damaged_sbd_files(tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp()
    for compressed in (False, True):
        path = folder / "whole.mat"
        scipy.io.savemat(path, {"GTcls": {"Segmentation": np.ones((4, 6), np.uint8)}}, do_compression=compressed)
        assert read_mask(path, 3).shape == (4, 6)
        for content in damaged(path.read_bytes(), seed):
            (folder / "damaged.mat").write_bytes(content)
            mask = survives(read_mask, folder / "damaged.mat", 3)
            assert mask is None or set(np.unique(mask).tolist()) <= {0, 1, 2, 3, IGNORE}


@given(SEEDS)
@fuzz(3)
def test_damaged_checkpoints(tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp()
    save_checkpoint(folder / "whole.pt", {"model": {"weight": torch.ones(3)}, "classes": ["a", "b"], "step": 3})
    for content in damaged((folder / "whole.pt").read_bytes(), seed):
        (folder / "damaged.pt").write_bytes(content)
        survives(load_checkpoint, folder / "damaged.pt")


class Payload:
    """Creates the file it is named after, when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["value", "key", "whole", "inside"])
def test_a_payload_is_never_executed(tmp_path, protocol, where):
    mark, path = tmp_path / "mark", tmp_path / "file"
    payload = Payload(mark)
    vector = np.array([1, 0])
    content = {
        "value": {"2007_000032": payload},
        "key": {"2007_000032": vector, payload: vector},
        "whole": payload,
        "inside": {"keys": vector, "high_res": [payload, vector], "cam": {"a": payload}},
    }[where]
    for pickled in (pickle.dumps(content, protocol), pickle.dumps(np.array(content, object), protocol)):
        write_npy(path, pickled)
        for read in (read_cls_labels, read_map_file, load_maps):
            with pytest.raises(GwsssError):
                read(path)
    model = {"model": {"weight": content}, "format": 1}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(model, path, pickle_protocol=max(protocol, 2), **options)
        with pytest.raises(GwsssError, match="damaged or not a checkpoint"):
            load_checkpoint(path)
    path.write_bytes(pickle.dumps(model, protocol))
    with pytest.raises(GwsssError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(payload, protocol))
    assert mark.exists()  # it is a real one
