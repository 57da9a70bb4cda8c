"""SBD's masks: MATLAB files whose GTcls.Segmentation is a plane of class numbers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from gwsss_fast.errors import GwsssError

_HEADER, _COMPRESSED = 128, 15  # bytes before the first element; type of an element that zlib packed
_BYTES_PER_PIXEL = 16  # the plane in MATLAB's doubles, and as much again for boundaries and names
_SMALL = 2**20  # bytes allowed besides
_CHUNK = 2**20


def read_sbd(path: Path, pixels: int) -> np.ndarray:
    """The class mask (H, W) in a file of SBD's `cls` folder, of at most so many pixels.

    Raises GwsssError when the file is missing, is no such file, or unpacks to more than a mask of that size takes.
    """
    most = _BYTES_PER_PIXEL * pixels + _SMALL
    try:
        with path.open("rb") as file:
            size = _unpacked_size(file, most)
            if size <= most:
                file.seek(0)
                content: Any = scipy.io.loadmat(file, variable_names=["GTcls"])
                return np.asarray(content["GTcls"]["Segmentation"][0, 0])
    except FileNotFoundError as error:
        raise GwsssError(f"mask {path} does not exist") from error
    except Exception as error:  # decoders raise almost anything on broken files
        raise GwsssError(f"mask {path} is not an SBD file with GTcls.Segmentation ({error})") from error
    raise GwsssError(
        f"mask {path} unpacks to more than {most / 2**20:.0f} MB, which no mask of {pixels / 1e6:g} million pixels "
        "needs; replace the file or raise max_megapixels"
    )


def _unpacked_size(file: Any, most: int) -> int:
    """Bytes of all elements of a MATLAB 5 file once unpacked, counted no further than past `most`.

    Nothing is kept: zlib can pack gigabytes of zeros into a few megabytes.
    """
    file.seek(0, 2)
    end, total = file.tell(), 0
    file.seek(_HEADER - 2)
    order = "<" if file.read(2) == b"IM" else ">"
    while file.tell() + 8 <= end and total <= most:
        kind, size = struct.unpack(f"{order}II", file.read(8))
        stop = min(file.tell() + size, end)
        if kind != _COMPRESSED:
            total += stop - file.tell()
            file.seek(stop)
            continue
        unpack = zlib.decompressobj()
        while total <= most and not unpack.eof and (packed := file.read(min(_CHUNK, stop - file.tell()))):
            while packed and total <= most:
                total += len(unpack.decompress(packed, _CHUNK))
                packed = unpack.unconsumed_tail
        file.seek(stop)
    return total
