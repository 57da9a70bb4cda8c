"""Reading MXNet's binary `.params` files (lists of named arrays) with nothing but numpy and torch.

The layout, all little-endian: uint64 0x112, uint64 reserved; uint64 number of arrays, the arrays; uint64 number of
names, each a uint64 length and that many bytes. An array starts with a uint32: a version mark, or in the oldest files
the number of dimensions. Then, by version: the storage type (int32, versions 2 and 3); the shape (a count and that many
numbers, uint32 in the oldest files, int64 later); device type and number (two int32); element type (int32); elements.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gwsss_fast.errors import GwsssError

MAGIC = 0x112
VERSION_1, VERSION_2, VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
ELEMENT_TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
MOST_DIMENSIONS = 32
LONGEST_NAME = 4096


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.left = path.stat().st_size

    def fail(self, what: str) -> GwsssError:
        return GwsssError(f"{self.path} is not a readable MXNet parameter file: {what}; download it again")

    def take(self, size: int) -> bytes:
        # Checked before reading: a damaged length must not make us allocate it.
        if size < 0 or size > self.left:
            raise self.fail("it ends too early")
        self.left -= size
        return self.file.read(size)

    def numbers(self, kind: str, count: int = 1) -> list[int]:
        return [int(x) for x in np.frombuffer(self.take(np.dtype(kind).itemsize * count), kind)]

    def number(self, kind: str) -> int:
        return self.numbers(kind)[0]


def _read_shape(reader: _Reader, mark: int) -> list[int]:
    if mark in (VERSION_2, VERSION_3) and reader.number("<i4") != 0:
        raise reader.fail("it holds sparse arrays")
    legacy = mark not in (VERSION_1, VERSION_2, VERSION_3)
    count = mark if legacy else reader.number("<i4")
    if count < 0 or count > MOST_DIMENSIONS:
        raise reader.fail(f"an array of {count} dimensions")
    shape = reader.numbers("<u4" if legacy else "<i8", count)
    if any(size < 0 for size in shape):
        raise reader.fail(f"an array of shape {shape}")
    return shape


def _read_array(reader: _Reader) -> Tensor:
    mark = reader.number("<u4")
    shape = _read_shape(reader, mark)
    if not shape and mark != VERSION_3:
        return torch.empty(0)  # the format's way to write "no array"
    reader.take(8)
    kind = reader.number("<i4")
    if not 0 <= kind < len(ELEMENT_TYPES):
        raise reader.fail(f"element type {kind} is unknown")
    dtype = np.dtype(ELEMENT_TYPES[kind])
    values = np.frombuffer(reader.take(math.prod(shape) * dtype.itemsize), dtype)
    return torch.from_numpy(values.reshape(shape).copy())


def read_mxnet_params(path: str | Path) -> dict[str, Tensor]:
    """The arrays of an MXNet `.params` file by name ("arg:..." and "aux:..." as written).

    Raises GwsssError when the file cannot be read, is cut short or of another kind.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            reader = _Reader(file, path)
            if reader.left < 16 or reader.number("<u8") != MAGIC:
                raise reader.fail("it does not start with the format's mark")
            reader.take(8)
            count = reader.number("<u8")
            arrays = []
            for _ in range(count):
                arrays.append(_read_array(reader))
            if reader.number("<u8") != count:
                raise reader.fail(f"it does not name its {count} arrays")
            names = [_read_name(reader) for _ in range(count)]
    except OSError as error:
        raise GwsssError(f"cannot read {path}: {error.strerror or error}") from error
    return dict(zip(names, arrays, strict=True))


def _read_name(reader: _Reader) -> str:
    length = reader.number("<u8")
    if length > LONGEST_NAME:
        raise reader.fail(f"a name of {length} characters")
    return reader.take(length).decode("utf-8", errors="replace")
