import _codecs
import os
import pickle

import numpy as np
import pytest
import torch

from gwsss_fast.data.label_files import load_pickled_dict, read_cls_labels
from gwsss_fast.data.map_files import read_map_file
from gwsss_fast.errors import GwsssError

_frombuffer = np.arange(2.0).__reduce_ex__(5)[0]  # NumPy has moved it


def save_pickle(path, pickled: bytes):
    """A .npy file whose pickle was written by hand."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickled)
    return path


class Payload:
    """Creates a file when it is unpickled without care."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_in_a_file_is_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    payloads = [
        Payload(os.system, f"touch {mark}"),
        Payload(eval, f"open({str(mark)!r}, 'w')"),
        Payload(open, str(mark), "w"),
        Payload(getattr, {}, "keys"),
        Payload(torch.load, str(mark)),
    ]
    for number, payload in enumerate(payloads):
        pickled = pickle.dumps(np.array({"x": payload}, object), protocol)
        path = save_pickle(tmp_path / f"{number}.npy", pickled)
        with pytest.raises(GwsssError, match=rf"{number}\.npy .*refused"):
            load_pickled_dict(path)
    pickle.loads(pickle.dumps(payloads[0]))
    assert mark.exists()  # the first payload is a real one
    mark.unlink()


def test_payload_inside_a_tensor_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    inner = tmp_path / "inner.pt"
    torch.save(Payload(os.mkdir, str(mark)), inner, _use_new_zipfile_serialization=False)
    outer = Payload(torch.storage._load_from_bytes, inner.read_bytes())
    path = save_pickle(tmp_path / "x.npy", pickle.dumps(np.array({"x": outer}, object)))
    with pytest.raises(GwsssError, match="can be read safely"):
        load_pickled_dict(path)
    assert not mark.exists()


def test_plain_values_come_back(tmp_path):
    saved = {
        "cam": np.random.default_rng(0).random((2, 3, 4), np.float32),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "keys": [1, 2],
        3: (1.5, True, None, b"x", {4}),
        "scalar": np.float64(2.5),
    }
    np.save(tmp_path / "x.npy", saved)
    loaded = load_pickled_dict(tmp_path / "x.npy")
    assert list(loaded) == list(saved)
    for key in ("cam", "turned"):
        np.testing.assert_array_equal(loaded[key], saved[key])
    assert {key: loaded[key] for key in ("keys", 3, "scalar")} == {key: saved[key] for key in ("keys", 3, "scalar")}


def test_tensors_as_irn_saves_them(tmp_path):
    cam = torch.rand(2, 3, 4)
    saved = {"keys": torch.tensor([1, 7]), "cam": cam.transpose(1, 2), "high_res": np.ones((2, 2), np.float32)}
    np.save(tmp_path / "irn.npy", saved)
    loaded = load_pickled_dict(tmp_path / "irn.npy")
    assert all(isinstance(value, np.ndarray) for value in loaded.values())
    np.testing.assert_array_equal(loaded["keys"], [1, 7])
    np.testing.assert_array_equal(loaded["cam"], cam.numpy().swapaxes(1, 2))


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_files_of_both_numpys(tmp_path, core):
    pickled = pickle.dumps(np.array({"x": np.arange(3)}, object), 3)
    other = pickled.replace(b"numpy._core", core.encode()).replace(b"numpy.core", core.encode())
    loaded = load_pickled_dict(save_pickle(tmp_path / "x.npy", other))
    np.testing.assert_array_equal(loaded["x"], np.arange(3))


def test_a_file_of_python_2(tmp_path):
    # {'2007_000032': 1} with byte strings and the Python 2 names, as its numpy.save wrote it
    pickled = b"\x80\x02}q\x00U\x0b2007_000032q\x01c__builtin__\nint\nK\x01\x85Rs."
    assert load_pickled_dict(save_pickle(tmp_path / "x.npy", pickled)) == {"2007_000032": 1}


def _short(text: bytes) -> bytes:
    """A string as protocols from 4 on write it."""
    return b"\x8c" + bytes([len(text)]) + text


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("keys", [(2007000032, 2011003276), ("2007_000032", "2011_003276")])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_cls_labels_of_every_protocol(tmp_path, protocol, keys, core):
    vectors = [np.array([1.0, 0, 1], np.float32), np.zeros(3, np.float32)]
    pickled = pickle.dumps(np.array(dict(zip(keys, vectors, strict=True)), object), protocol)
    for name in (b"multiarray", b"numeric"):
        old, new = b"numpy._core." + name, f"{core}.".encode() + name
        pickled = pickled.replace(b"c" + old, b"c" + new).replace(_short(old), _short(new))
    if protocol >= 4:
        pickled = pickled[:2] + pickled[11:]  # without the length of the whole, which may have changed
    assert core.encode() in pickled
    labels = read_cls_labels(save_pickle(tmp_path / "cls_labels.npy", pickled))
    assert {key: value.tolist() for key, value in labels.items()} == {
        "2007_000032": [1, 0, 1],
        "2011_003276": [0, 0, 0],
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_values_of_every_protocol(tmp_path, protocol):
    maps = np.random.default_rng(0).random((2, 3, 4), np.float32)
    saved = {
        "keys": np.array([1, 7]),
        "maps": maps,
        "turned": maps.T,
        "swapped": maps.swapaxes(0, 1),
        "big": maps.astype(">f4"),
        "none": maps[:0],
        "one": np.float32(2.5),
        "bytes": b"\x00\xff",
        "tensor": torch.from_numpy(maps),
    }
    loaded = load_pickled_dict(save_pickle(tmp_path / "x.npy", pickle.dumps(np.array(saved, object), protocol)))
    for key in ("keys", "maps", "turned", "swapped", "big", "none", "tensor"):
        np.testing.assert_array_equal(loaded[key], np.asarray(saved[key]))
    assert (loaded["one"], loaded["bytes"]) == (saved["one"], saved["bytes"])


@pytest.mark.parametrize("flags", [0, 63])
@pytest.mark.parametrize("function", ["array", "buffer", "scalar"])
def test_bytes_never_become_objects(tmp_path, flags, function):
    kind = Payload(np.dtype, "O", False, True)
    kind.call += ((3, "|", None, None, None, -1, -1, flags),)  # without its flags NumPy takes this type for numbers
    if function == "array":
        payload = Payload(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b")
        payload.call += ((1, (1,), kind, False, bytes(8)),)
    elif function == "buffer":
        payload = Payload(_frombuffer, bytes(8), kind, (1,), "C")
    else:
        payload = Payload(np.float32(0).__reduce__()[0], kind, bytes(8))
    with pytest.raises(GwsssError, match=r"x\.npy is not a dictionary"):
        load_pickled_dict(save_pickle(tmp_path / "x.npy", pickle.dumps({"x": payload}, 2)))


@pytest.mark.parametrize("protocol", [2, 5])
def test_maps_of_other_projects(tmp_path, protocol):
    maps = np.random.default_rng(0).random((2, 3, 4), np.float32)
    irn = {"keys": torch.tensor([1, 7]), "cam": torch.from_numpy(maps[:, :1, :1]), "high_res": maps}
    for content in (irn, {1: maps[0], 7: maps[1]}):
        path = save_pickle(tmp_path / "x.npy", pickle.dumps(np.array(content, object), protocol))
        stored = read_map_file(path)
        assert stored.keys.tolist() == [1, 7]
        np.testing.assert_array_equal(stored.maps["ensemble"], maps)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (_codecs.encode, ("print()", "rot13")),
        (_codecs.encode, ("x", "utf-8")),
        (_codecs.encode, ("x",)),
        (_codecs.encode, (b"x", "latin1")),
        (_codecs.decode, (b"x", "latin1")),
        (_frombuffer, (bytes(8), np.dtype(object), (1,), "C")),
    ],
)
def test_the_functions_for_bytes_do_nothing_else(tmp_path, protocol, function, arguments):
    pickled = pickle.dumps(np.array({"x": Payload(function, *arguments)}, object), protocol)
    with pytest.raises(GwsssError, match=r"x\.npy .*refused"):
        load_pickled_dict(save_pickle(tmp_path / "x.npy", pickled))


def test_what_is_no_dictionary(tmp_path):
    (tmp_path / "text.npy").write_text("rubbish")
    np.save(tmp_path / "numbers.npy", np.arange(3))
    np.save(tmp_path / "list.npy", np.array([1, "a"], object))
    whole = save_pickle(tmp_path / "cut.npy", pickle.dumps({"x": np.arange(100)}))
    whole.write_bytes(whole.read_bytes()[:-50])
    for name in ("text", "numbers", "list", "cut"):
        with pytest.raises(GwsssError, match=rf"{name}\.npy is not a dictionary"):
            load_pickled_dict(tmp_path / f"{name}.npy")
    with pytest.raises(GwsssError, match=r"gone\.npy does not exist"):
        load_pickled_dict(tmp_path / "gone.npy")


def test_cls_labels_with_both_kinds_of_keys(tmp_path):
    vectors = [np.array([1, 0, 1], np.float32), np.array([[0, 1, 0]], np.int64)]
    for name, keys in {
        "str": ["2007_000032", "2011_003276"],
        "int": [2007000032, 2011003276],
        "np": [np.int64(2007000032), np.str_("2011_003276")],
    }.items():
        np.save(tmp_path / f"{name}.npy", dict(zip(keys, vectors, strict=True)))
        labels = read_cls_labels(tmp_path / f"{name}.npy")
        assert {key: value.tolist() for key, value in labels.items()} == {
            "2007_000032": [1, 0, 1],
            "2011_003276": [0, 1, 0],
        }
    np.save(tmp_path / "coco.npy", {262145: vectors[0]})
    assert list(read_cls_labels(tmp_path / "coco.npy")) == ["262145"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no labels"),
        ({"a": np.ones(3), "b": np.ones(4)}, "entry of b is not a vector of 3 zeros and ones"),
        ({"a": np.array([0, 2])}, "entry of a is not a vector"),
        ({"a": "cat"}, "entry of a is not a vector"),
    ],
)
def test_broken_cls_labels(tmp_path, content, message):
    np.save(tmp_path / "cls_labels.npy", content)
    with pytest.raises(GwsssError, match=message):
        read_cls_labels(tmp_path / "cls_labels.npy")
