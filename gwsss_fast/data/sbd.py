"""SBD's masks: MATLAB 5 files whose GTcls.Segmentation is a plane of class numbers.

Read here and not by SciPy, whose reader crashes the process on some broken files. An element is a tag, its type and
size, and its bytes, padded to 8; a matrix is an element of elements: flags, dimensions, name, and its numbers, or the
names of its fields and a matrix for each.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gwsss_fast.errors import GwsssError

_HEADER = 128  # bytes before the first element; the last two tell the byte order
_MATRIX, _COMPRESSED, _STRUCT = 14, 15, 2  # types of elements, and a class of matrices
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_BYTES_PER_PIXEL = 16  # the plane in MATLAB's doubles, and as much again for boundaries and names
_SMALL = 2**20  # bytes allowed besides


def read_sbd(path: Path, pixels: int) -> np.ndarray:
    """The class mask (H, W) in a file of SBD's `cls` folder, of at most so many pixels.

    Raises GwsssError when the file is missing, is no such file, or unpacks to more than a mask of that size takes.
    """
    most = _BYTES_PER_PIXEL * pixels + _SMALL
    try:
        with path.open("rb") as file:
            content = file.read(min(most, os.fstat(file.fileno()).st_size))
        order = "<" if content[_HEADER - 2 : _HEADER] == b"IM" else ">"
        for kind, data in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                unpack = zlib.decompressobj()
                unpacked = unpack.decompress(data, most + 1)
                if len(unpacked) > most:
                    raise ValueError(
                        f"it unpacks to more than the {most / 2**20:.0f} MB of a mask within max_megapixels"
                    )
                kind, data = next(_elements(unpacked, order))
            matrix = _matrix(data, order) if kind == _MATRIX else None
            if matrix is not None and matrix.name == "GTcls":
                return _numbers(_field(matrix, "Segmentation", order), order, pixels)
        raise ValueError("it has no GTcls")
    except FileNotFoundError as error:
        raise GwsssError(f"mask {path} does not exist") from error
    except Exception as error:  # broken files break anywhere
        raise GwsssError(f"mask {path} is not an SBD file with GTcls.Segmentation ({error})") from error


class _Matrix(NamedTuple):
    """A matrix whose numbers or fields are not looked at yet."""

    kind: int
    shape: tuple[int, ...]
    name: str
    rest: list[tuple[int, bytes]]


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element. Raises ValueError where one is cut off."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start, packed = at + 8, kind == _COMPRESSED
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(content) or (start == at + 4 and size > 4):
            raise ValueError("it is cut off")
        yield kind, content[start : start + size]
        at = start + size if packed else start + size + -(start + size) % 8


def _matrix(data: bytes, order: str) -> _Matrix:
    (_, flags), (_, shape), (_, name), *rest = _elements(data, order)
    kind = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    return _Matrix(kind, tuple(np.frombuffer(shape, f"{order}i4").tolist()), name.decode("latin1"), rest)


def _field(matrix: _Matrix, name: str, order: str) -> _Matrix:
    """A field of a structure of one element."""
    if matrix.kind != _STRUCT or matrix.shape != (1, 1):
        raise ValueError(f"{matrix.name} is no structure")
    (_, length), (_, names), *fields = matrix.rest
    (size,) = np.frombuffer(length, f"{order}i4").tolist()
    known = [names[start : start + size].rstrip(b"\0") for start in range(0, len(names), max(size, 1))]
    kind, data = fields[known.index(name.encode())]
    if kind != _MATRIX:
        raise ValueError(f"{name} is no matrix")
    return _matrix(data, order)


def _numbers(matrix: _Matrix, order: str, most: int) -> np.ndarray:
    """The numbers of a matrix; MATLAB writes column after column, and doubles as bytes where they fit."""
    kind, data = matrix.rest[0]
    if kind not in _TYPES:
        raise ValueError(f"{matrix.name} holds no numbers")
    numbers = np.frombuffer(data, order + _TYPES[kind]).reshape(matrix.shape, order="F")
    if numbers.size > most:
        raise ValueError(f"it has {numbers.size} pixels, more than max_megapixels allows")
    if numbers.dtype.kind == "f":
        if not (np.abs(numbers) < 2**31).all() or (numbers != numbers.round()).any():
            raise ValueError("it holds numbers that are not whole")
        return numbers.astype(np.int64)
    return numbers
