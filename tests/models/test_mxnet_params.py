import struct

import numpy as np
import pytest
import torch

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.mxnet_params import read_mxnet_params
from gwsss_fast.models.resnet38 import ResNet38
from gwsss_fast.models.weights import load_weights

TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
MAGIC = {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}


def encode(array, version):
    """One array in the layout of the given version; 0 is the oldest, which starts with the number of dimensions."""
    shape = array.shape
    if version == 0:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        head = struct.pack("<I", MAGIC[version])
        head += struct.pack("<i", 0) if version > 1 else b""
        head += struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    return head + struct.pack("<iii", 1, 0, TYPES[array.dtype.name]) + array.tobytes()


def write(path, arrays, version=2):
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    content += b"".join(encode(np.ascontiguousarray(array), version) for array in arrays.values())
    content += struct.pack("<Q", len(arrays))
    for name in arrays:
        content += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_versions_and_types(tmp_path, version):
    arrays = {f"arg:{kind}": np.arange(6).reshape(1, 2, 3).astype(kind) for kind in TYPES}
    write(tmp_path / "x.params", arrays, version)
    read = read_mxnet_params(tmp_path / "x.params")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name].numpy(), array)
        assert read[name].numpy().dtype == array.dtype


def test_no_prefix_of_a_file_is_accepted(tmp_path):
    path = tmp_path / "x.params"
    content = write(path, {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)})
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(GwsssError, match=r"x.params is not a readable MXNet parameter file"):
            read_mxnet_params(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<QQQ", 0x113, 0, 0), "format's mark"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "ends too early"),
        (struct.pack("<QQQIiiqq", 0x112, 0, 1, MAGIC[2], 0, 2, 2**40, 2**40) + bytes(12), "ends too early"),
        (struct.pack("<QQQIiiq", 0x112, 0, 1, MAGIC[2], 0, 1, -4) + bytes(12), "shape"),
        (struct.pack("<QQQIi", 0x112, 0, 1, MAGIC[2], 1), "sparse"),
        (struct.pack("<QQQI", 0x112, 0, 1, 70000), "dimensions"),
        (struct.pack("<QQQIiiiii", 0x112, 0, 1, 1, 2, 1, 0, 99, 0), "element type 99"),
        (struct.pack("<QQQQQ", 0x112, 0, 0, 1, 2**50), "does not name"),
    ],
)
def test_hostile_files(tmp_path, content, message):
    (tmp_path / "x.params").write_bytes(content)
    with pytest.raises(GwsssError, match=message):
        read_mxnet_params(tmp_path / "x.params")


def mxnet_names():
    """The names of the published ResNet-38, written out from its symbol, and ours for each."""
    blocks = {"res2a": "b2", "res3a": "b3", "res4a": "b4", "res5a": "b5", "res6a": "b6", "res7a": "b7"}
    for stage, count in ((2, 2), (3, 2), (4, 5), (5, 2)):
        blocks |= {f"res{stage}b{index}": f"b{stage}_{index}" for index in range(1, count + 1)}
    names = {"arg:conv1a_weight": "conv1a.weight"}
    norms = {"bn7": "bn7"}
    for theirs, ours in blocks.items():
        branches = ["2a", "2b1", "2b2"] if ours in ("b6", "b7") else ["2a", "2b1"]
        for branch in branches + (["1"] if "_" not in ours else []):
            names[f"arg:{theirs}_branch{branch}_weight"] = f"{ours}.conv_branch{branch}.weight"
        for branch in branches:
            norms[theirs.replace("res", "bn") + f"_branch{branch}"] = f"{ours}.bn_branch{branch}"
    for theirs, ours in norms.items():
        names[f"arg:{theirs}_gamma"] = f"{ours}.weight"
        names[f"arg:{theirs}_beta"] = f"{ours}.bias"
        names[f"aux:{theirs}_moving_mean"] = f"{ours}.running_mean"
        names[f"aux:{theirs}_moving_var"] = f"{ours}.running_var"
    return names


def test_resnet38_file(tmp_path):
    torch.manual_seed(0)
    names = mxnet_names()
    model = ResNet38(width=2)
    targets = {key: x for key, x in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert sorted(names.values()) == sorted(targets)
    arrays = {theirs: torch.randn(targets[ours].shape).numpy() for theirs, ours in names.items()}
    arrays |= {"arg:linear1000_weight": np.zeros((1000, 128), np.float32), "arg:linear1000_bias": np.zeros(1000, "f4")}
    path = tmp_path / "ilsvrc.params"
    write(path, arrays)
    sentence = load_weights(model, path)
    assert "sha256" in sentence
    assert sentence.endswith("without arg:linear1000_weight, arg:linear1000_bias")
    state = model.state_dict()
    for theirs, ours in names.items():
        np.testing.assert_array_equal(state[ours].numpy(), arrays[theirs])
    del arrays["aux:bn4b3_branch2b1_moving_var"]
    write(path, arrays)
    with pytest.raises(GwsssError, match=r"ilsvrc.params lacks the key b4_3.bn_branch2b1.running_var"):
        load_weights(model, path)
