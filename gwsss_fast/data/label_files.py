"""Dictionaries that NumPy saved by pickling, read without running what a file may bring along."""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from gwsss_fast.data.pickle_bounds import check_bounds
from gwsss_fast.errors import GwsssError


def _encode(text: str, encoding: str = "") -> bytes:
    """Bytes in protocols 0 to 2, where Python 3 writes them as text for `_codecs.encode`; latin1 and nothing else."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for _codecs.encode by {encoding!r}, which is refused")
    return text.encode("latin1")


class _Type:
    """A type of numbers, text or objects without the flags that a file may give it.

    By flags of its own a file could have bytes taken for pointers to objects.
    """

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufcSUO":
            raise pickle.UnpicklingError(f"it asks for arrays of {self.dtype}, which is refused")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Budget:
    """How much may be handed to functions, which may copy it: a few bytes can hand over the same time and again."""

    def __init__(self, most: int) -> None:
        self.left = most

    def spend(self, *values: Any) -> None:
        self.left -= sum(len(value) for value in values if isinstance(value, _SIZED))
        if self.left < 0:
            raise pickle.UnpicklingError("it copies its values time and again, which is refused")


class _Array(np.ndarray):
    """An array that takes its type from a _Type."""

    budget: _Budget

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        version, shape, kind, fortran, content = state
        self.budget.spend(content)
        if math.prod(shape) * (1 if _plain(kind).hasobject else _plain(kind).itemsize) != len(content):
            raise pickle.UnpicklingError(f"it asks for an array of shape {shape} without its content")
        super().__setstate__((version, shape, _plain(kind), fortran, content))  # type: ignore[misc]


def _plain(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError(f"it asks for an array of {kind!r}, which is refused")
    return kind.dtype


def _reconstruct(*_: Any) -> np.ndarray:
    """An array that is filled by its __setstate__."""
    return _Array(0, np.uint8)


def _scalar(kind: Any, content: Any) -> Any:
    """NumPy's function for its numbers."""
    content = content.encode("latin1") if isinstance(content, str) else content
    return _from_buffer(content, kind, (1,), "C")[0]


def _from_buffer(
    buffer: bytes, kind: Any, shape: tuple[int, ...], order: Any, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """NumPy's function for arrays in protocol 5, which refuses objects."""
    dtype = _plain(kind)
    if dtype.kind == "O":
        raise pickle.UnpicklingError("it asks for objects from bytes, which is refused")
    array = np.frombuffer(buffer, dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _storage(data: bytes) -> Any:
    """PyTorch's function for the content of a tensor, which would unpickle without limits; never compressed."""
    if data[:2] == b"PK":
        raise pickle.UnpicklingError("it holds a tensor in an archive, which is refused")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _maker(kind: type, *accepted: type) -> Callable[..., Any]:
    """`kind`, called with what a file may hand it: `bytes` of a number, say, would be as long as that number."""

    def make(*arguments: Any) -> Any:
        if any(type(argument) not in accepted for argument in arguments):
            raise pickle.UnpicklingError(f"it asks for {kind.__name__} of something odd, which is refused")
        return kind(*arguments)

    return make


_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
_NUMBERS = (int, float, bool, complex)
_GROUPS = (list, tuple, set, frozenset)
_PLAIN = {
    **{kind.__name__: _maker(kind, *_NUMBERS, str, bytes) for kind in _NUMBERS},
    **{kind.__name__: _maker(kind, *_GROUPS) for kind in (set, frozenset)},
    **{kind.__name__: _maker(kind, kind) for kind in (str, bytes, dict, list)},
    "tuple": _maker(tuple, tuple),
}
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, name): kind for name, kind in _PLAIN.items() for module in ("builtins", "__builtin__")},  # Python 3, 2
    # The functions have moved between versions of NumPy.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): object,  # only ever handed to _reconstruct
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("numpy", "dtype"): _Type,
    ("collections", "OrderedDict"): _maker(OrderedDict),  # of a tensor's hooks, always empty
}


def load_pickled_dict(path: str | Path) -> dict[Any, Any]:
    """The dictionary in a `.npy` file as `numpy.save` writes it, with tensors of PyTorch turned into arrays.

    Only plain Python values, NumPy arrays and CPU tensors are built; nothing else that the file names is imported.
    Raises GwsssError when the file is missing, is no such dictionary or asks for anything else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _skip_header(file)
            content = file.read()
        check_bounds(content)
        value = _Unpickler(content).load()
        if isinstance(value, np.ndarray) and value.shape == ():
            value = value.item()
        if not isinstance(value, dict):
            raise ValueError(f"it holds a value of type {type(value).__name__}")
        return {key: _as_array(item) for key, item in value.items()}
    except FileNotFoundError as error:
        raise GwsssError(f"label file {path} does not exist") from error
    except Exception as error:  # a broken pickle raises almost anything
        raise GwsssError(f"{path} is not a dictionary saved by numpy.save that can be read safely: {error}") from error


def read_cls_labels(path: str | Path) -> dict[str, np.ndarray]:
    """Image-level labels by image id from the field's `cls_labels.npy`: multi-hot vectors (L,) uint8.

    Keys may be strings, 2007_000032, or numbers, 2007000032; both come back as 2007_000032.
    Raises GwsssError when the file cannot be read, is empty or holds anything but label vectors of one length.
    """
    content = load_pickled_dict(path)
    if not content:
        raise GwsssError(f"{path} holds no labels")
    vectors: dict[str, np.ndarray] = {}
    length = 0
    for key, value in content.items():
        image = _image_id(key, path)
        vector = as_numbers(value)
        length = length or (0 if vector is None else vector.size)
        if vector is None or vector.size != length or not np.isin(vector, (0, 1)).all():
            raise GwsssError(f"{path}: the entry of {image} is not a vector of {length} zeros and ones")
        vectors[image] = vector.ravel().astype(np.uint8)
    return vectors


def as_numbers(value: Any) -> np.ndarray | None:
    """Real numbers as an array: an array as it is, and of lists only those of numbers; else None.

    Lists in lists may share their parts, and unfold to any size, and so would texts, each as long as the longest.
    """
    if isinstance(value, (list, tuple)) and not all(
        isinstance(item, (int, float, np.number, np.bool_)) for item in value
    ):
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array if array.dtype.kind in "buif" else None


def _as_array(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        if item.numel() * item.element_size() > item.untyped_storage().nbytes():
            raise pickle.UnpicklingError(f"its tensor of shape {tuple(item.shape)} repeats what it holds")
        return item.numpy()
    return np.asarray(item) if isinstance(item, _Array) else item


def _image_id(key: Any, path: str | Path) -> str:
    if isinstance(key, (int, np.integer)) and 0 <= key < 10**18:
        text = str(int(key))
        return f"{text[:4]}_{text[4:]}" if len(text) == 10 else text  # a VOC id without its underscore
    if isinstance(key, str):
        return str(key)
    raise GwsssError(f"{path}: a key of type {type(key).__name__} is neither an image id nor its number")


def _skip_header(file: IO[bytes]) -> None:
    """Read up to the pickle. Raises ValueError when the file is not an array of Python objects."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"unknown version {version} of the .npy format")
    _, _, dtype = read(file)
    if not dtype.hasobject:
        raise ValueError(f"it holds an array of {dtype}")


class _Unpickler(pickle.Unpickler):
    """Builds plain values, arrays and tensors; refuses every other name, and copies without end of what is there."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # NumPy's own choice for files that Python 2 wrote
        self.budget = _Budget(4 * len(content) + 2**20)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")

        def make(*arguments: Any) -> Any:
            self.budget.spend(*arguments)
            made = _ALLOWED[module, name](*arguments)
            if isinstance(made, _Array):
                made.budget = self.budget
            return made

        return make
