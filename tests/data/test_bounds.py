"""Files that unfold to far more than their bytes: refused before they do."""

import pickle
import resource
import signal
import struct
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from PIL import Image
from voc_builder import add_image, make_voc, write_list

from gwsss_fast import check_data
from gwsss_fast.data import images
from gwsss_fast.data.images import pixel_limit, read_image, read_mask, read_saliency, read_size, set_pixel_limit
from gwsss_fast.data.label_files import load_pickled_dict, read_cls_labels
from gwsss_fast.data.loading import make_loader
from gwsss_fast.data.map_files import read_map_file
from gwsss_fast.errors import GwsssError

READERS = [read_image, read_size, read_saliency, lambda path: read_mask(path, 3)]


@pytest.fixture(autouse=True)
def _usual_limit():
    yield
    set_pixel_limit(images.MAX_MEGAPIXELS)


def png_header(width, height, body=b""):
    """A PNG that claims a size; its body is whatever."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", READERS)
def test_a_large_image_is_refused_from_its_header(tmp_path, read, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(8000, 7000, zlib.compress(bytes(1000))))
    Image.init()
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(GwsssError, match=r"bomb\.png has 8000x7000 pixels, more than the 50 million allowed"):
        read(path)
    path.write_bytes(png_header(60000, 60000))  # beyond what Pillow itself opens
    with pytest.raises(GwsssError, match=r"bomb\.png has too many pixels.*max_megapixels"):
        read(path)


def test_the_limit_can_be_set_and_reaches_worker_processes(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    set_pixel_limit(0.004999)
    with pytest.raises(GwsssError, match="100x50"):
        read_image(tmp_path / "a.png")
    loader = make_loader([0], batch_size=1)
    set_pixel_limit(1)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loader.worker_init_fn(0)  # in a process that knows nothing of it
    for number, handler in before.items():
        signal.signal(number, handler)
    assert pixel_limit() == 4999
    set_pixel_limit(0.005)
    assert read_image(tmp_path / "a.png").size == (100, 50)
    for wrong in (0, -1, float("nan"), 179):
        with pytest.raises(GwsssError, match=r"max_megapixels = .* must be above 0 and at most 178"):
            set_pixel_limit(wrong)


@pytest.mark.parametrize("kind", ["EPS", "PCX"])  # for the first Pillow starts Ghostscript
@pytest.mark.parametrize("name", ["a.eps", "a.jpg"])
def test_only_the_formats_of_images_are_opened(tmp_path, name, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / name, format=kind)
    with pytest.raises(GwsssError, match="cannot be decoded"):
        read_image(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jpg", format="WEBP")  # another name is no harm
    assert read_image(tmp_path / "b.jpg").size == (4, 4)


def sbd(path, mask, **more):
    scipy.io.savemat(path, {"GTcls": {"Segmentation": mask, **more}}, do_compression=True)
    return path


def test_an_sbd_file_that_unpacks_to_gigabytes(tmp_path):
    set_pixel_limit(0.01)
    small = np.zeros((100, 100), np.uint8)
    assert read_mask(sbd(tmp_path / "good.mat", small), 3).shape == (100, 100)
    with pytest.raises(GwsssError, match=r"large\.mat is not .*it has 160000 pixels, more than max_megapixels allows"):
        read_mask(sbd(tmp_path / "large.mat", np.zeros((400, 400), np.uint8)), 3)
    bomb = sbd(tmp_path / "bomb.mat", small, Boundaries=np.zeros(2**24, np.uint8))
    assert bomb.stat().st_size < 40_000
    with pytest.raises(GwsssError, match=r"bomb\.mat is not .* unpacks to more than the 1 MB of a mask"):
        read_mask(bomb, 3)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_sbd_files_as_scipy_reads_them(tmp_path, compressed, kind):
    mask = np.random.default_rng(0).integers(0, 4, (7, 5)).astype(kind)
    edges = np.empty((2, 1), object)
    edges[:, 0] = [scipy.sparse.csc_matrix(mask > 1), scipy.sparse.csc_matrix(mask > 2)]
    inner = {"Boundaries": edges, "Segmentation": mask, "CategoriesPresent": np.array([1.0, 3])}
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"other": {"Segmentation": mask + 1}, "GTcls": inner}, do_compression=compressed)
    np.testing.assert_array_equal(read_mask(path, 3), scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0])
    scipy.io.savemat(path, {"GTcls": {"Segmentation": mask + 0.5}}, do_compression=compressed)
    with pytest.raises(GwsssError, match=r"x\.mat is not an SBD file .*not whole"):
        read_mask(path, 3)


def npy(path, pickled):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickled)
    return path


def nested(levels):
    """A tuple of two of a tuple of two ...; as the key of a dictionary."""
    pickled = b"\x80\x02}()"
    pickled += b"".join(b"q%ch%c\x86" % (level, level) for level in range(levels))
    return pickled + b"K\x01u."


def endless_list(levels):
    value = [0, 1]
    for _ in range(levels):
        value = [value, value]
    return value


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def copies(value, made):
    """A list of `made`, what a file calls for its first value, 2 MB of `value`, time and again: 40 GB."""
    return b"\x80\x02}(U\x01x](" + value + b"q\x01" + made * 20_000 + b"eu."


ONES = b"](" + b"K\x01" * 250_000 + b"e\x85"
TEXT = b"X" + struct.pack("<I", 2_000_000) + b"a" * 2_000_000
BYTES = b"T" + struct.pack("<I", 2_000_000) + b"a" * 2_000_000
SWAPPED = (  # an array whose bytes are in the other order, which are copied
    b"(K\x01J"
    + struct.pack("<i", 1_000_000)
    + b"\x85cnumpy\ndtype\n(U\x02u2K\x00K\x01tR(K\x03U\x01>NNNJ\xff\xff\xff\xffJ"
    b"\xff\xff\xff\xffK\x00tb\x89" + BYTES + b"t"
)
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"


def strided_tensor():
    return torch.zeros(1).expand(100_000, 100_000)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # its memo alone would take 32 GB
        b"\x80\x02}p2147483647\n.",
        nested(200),
        pickle.dumps({"x": endless_list(40)}),
        pickle.dumps({"x": Call(bytes, 10**12)}),
        pickle.dumps({"x": Call(str, endless_list(40))}),
        pickle.dumps({"x": Call(tuple, [1, 2])}),
        pickle.dumps({"x": strided_tensor()}),
        b"\x80\x04}\x8e\xff\xff\xff\xff\xff\xff\x00\x00.",  # bytes longer than memory
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\x00\x00}.",  # a frame of that length
        copies(ONES, b"c__builtin__\nlist\nh\x01R"),
        copies(ONES, b"c__builtin__\nset\nh\x01R"),
        copies(TEXT + b"X\x06\x00\x00\x00latin1\x86", b"c_codecs\nencode\nh\x01R"),
        copies(SWAPPED, EMPTY + b"h\x01b"),
        copies(TEXT, b"h\x01"),  # one text, which an array would hold 20,000 times
    ],
    ids=range(15),
)
def test_label_files_that_unfold(tmp_path, pickled):
    path = npy(tmp_path / "x.npy", pickled)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_cls_labels, read_map_file):
        with pytest.raises(GwsssError, match=r"x\.npy"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_an_array_of_objects_without_them(tmp_path):
    array = np.empty(1, object)
    pickled = pickle.dumps({"x": array}, 2)
    assert pickled.count(b"K\x01\x85") == 1  # its shape (1,)
    large = pickled.replace(b"K\x01\x85", b"\x8a\x05\x00\x00\x00\x00\x01\x85")  # (2**32,)
    with pytest.raises(GwsssError, match="without its content"):
        load_pickled_dict(npy(tmp_path / "x.npy", large))
    assert load_pickled_dict(npy(tmp_path / "y.npy", pickled))["x"].shape == (1,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({10**30: np.ones(2)}, "a key of type int"),
        ({-1: np.ones(2)}, "a key of type int"),
        ({(1, 2): np.ones(2)}, "a key of type tuple"),
        ({"a": [[1], [0, 1]]}, "entry of a is not a vector"),
        ({"a": np.array(["x"])}, "entry of a is not a vector"),
    ],
)
def test_odd_labels(tmp_path, content, message):
    np.save(tmp_path / "x.npy", np.array(content, object))
    with pytest.raises(GwsssError, match=message):
        read_cls_labels(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "content",
    [
        {"keys": np.array([1]), "cam": np.ones((1, 2, 2), np.float32), "size": np.array([10**6, 10**6])},
        {"keys": np.array([1]), "cam": np.ones((1, 0, 2), np.float32), "size": np.array([8, 8])},
        {"keys": np.array([1]), "cam": np.ones((1, 2, 2), np.float32), "size": "large"},
        {"keys": ["a"], "high_res": np.ones((1, 2, 2), np.float32)},
        {"keys": np.array([1]), "high_res": "maps"},
        {10**30: np.ones((2, 2))},
        {1: "map"},
    ],
)
def test_odd_maps(tmp_path, content):
    np.save(tmp_path / "x.npy", np.array(content, object))
    with pytest.raises(GwsssError, match=r"x\.npy: "):
        read_map_file(tmp_path / "x.npy")


def test_check_data_has_the_limit_too(tmp_path, capsys):
    make_voc(tmp_path, "x", "y")
    add_image(tmp_path, "y", size=(90, 80))
    write_list(tmp_path, "train", "x 0", "y 1")
    assert check_data.main([str(tmp_path), "--max-megapixels", "0.007"]) == 2
    assert "y.jpg has 90x80 pixels, more than the 0.007 million allowed" in capsys.readouterr().err
    assert check_data.main([str(tmp_path)]) == 0


def test_a_malformed_list_is_reported_with_the_rest(tmp_path, capsys):
    make_voc(tmp_path, "x", "y")
    (tmp_path / "JPEGImages" / "y.jpg").write_bytes(b"rubbish")
    write_list(tmp_path, "train", "x 0", "y 1", "x 1", "z many", f"w {'9' * 5000}", "a/b c d")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe")
    assert check_data.main([str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "files or labels that cannot be used: 6" in printed
    for part in (
        "train.txt, line 3: image x is already on line 1",
        "train.txt, line 4: 'many' are no labels",
        "train.txt, line 5: '999",
        "train.txt, line 6: an image path is followed by one mask path at most",
        "val.txt cannot be read as UTF-8 text",
        "y.jpg cannot be decoded",
    ):
        assert part in printed


def test_a_malformed_csv_is_reported_with_the_rest(tmp_path, capsys):
    for name in ("x", "y"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    long = "n" * 300 + ".png"  # a name that no file system takes
    (tmp_path / "train.csv").write_text(f"x.png,a\nx.png,b\ny.png,a,b\n{long},a\n,a\ny.png,b\n")
    assert check_data.main([str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    for part in (
        "line 2: image",
        "named twice",
        "line 3: expected",
        "line 5: the first column names no file",
        "line 4",
    ):
        assert part in printed


def test_broken_labels_hint_at_other_sources(tmp_path):
    from gwsss_fast.data.dataset import open_dataset

    make_voc(tmp_path, "x")
    write_list(tmp_path, "train", "x")
    (tmp_path / "cls_labels.npy").write_bytes(b"rubbish")
    with pytest.raises(GwsssError, match=r"cls_labels\.npy is not .*--data\.labels list, masks or xml"):
        open_dataset(tmp_path)
    with pytest.raises(GwsssError) as caught:
        open_dataset(tmp_path, labels="cls_labels")
    assert "--data.labels" not in str(caught.value)


def test_a_mask_of_large_numbers(tmp_path):
    """Counts of all values up to the largest would take 16 GB."""
    Image.fromarray(np.full((2, 3), 2**31 - 1, np.int32)).save(tmp_path / "x.tiff")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GwsssError, match=r"x\.tiff holds the value 2147483647, but only 0 to 3"):
        read_mask(tmp_path / "x.tiff", 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
