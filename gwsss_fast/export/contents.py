"""What a model file is, told by its content, and the metadata in it; nothing is loaded, unpickled or executed."""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gwsss_fast.errors import GwsssError
from gwsss_fast.export.metadata import KEY, Metadata, beside, read_beside

Kind = Literal["onnx", "torch-export", "aoti", "tensorrt", "tensorrt-rtx", "checkpoint"]
ENGINE_MARK = f"{KEY} "  # stands before the JSON in an engine's name
LONGEST_JSON = 1 << 20
EXPECTED = "a checkpoint, an ONNX file, a .pt2 of torch.export or AOTInductor, or a TensorRT engine"
# Fields of ONNX's ModelProto; which of them a file holds first is the writer's choice.
MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
IR_VERSION, GRAPH, METADATA_PROPS = 1, 7, 14
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def kind_of(path: str | Path) -> Kind:
    """What `path` holds. Raises GwsssError when it is missing or none of what this package reads."""
    path = _existing(path)
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] == b"PK\x03\x04":
        return _kind_of_archive(path)
    if head[1:4] == b"trt":
        return _kind_of_engine(path, head)
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return "checkpoint"  # of PyTorch's older format; reading it will say whether it is one of this package
    if head and _onnx_fields(path) is not None:
        return "onnx"
    raise GwsssError(f"{path} is no model that this package reads: it must be {EXPECTED}")


def read_metadata(path: str | Path) -> Metadata:
    """The metadata in an exported file, else those beside it. Raises GwsssError when there are none or it is damaged.

    Not for checkpoints, which hold their configuration instead.
    """
    path = _existing(path)
    kind = kind_of(path)
    text = None
    if kind == "onnx":
        text = (_onnx_fields(path) or {}).get(KEY)
    elif kind in ("torch-export", "aoti"):
        text = _archive_text(path, f"extra/{KEY}.json")
    elif kind in ("tensorrt", "tensorrt-rtx"):
        text = _engine_text(path)
    metadata = Metadata.from_json(text, str(path)) if text is not None else read_beside(path)
    if metadata is None:
        raise GwsssError(
            f"{path} has no metadata of gwsss_fast in it and there is no {beside(path).name} beside it; export the "
            "model with `python -m gwsss_fast.export_model`"
        )
    if metadata.format != kind:
        raise GwsssError(f"{path} is {kind}, but its metadata says {metadata.format}; export the model again")
    return metadata


def archive_names(path: Path) -> list[str]:
    """Names in a zip archive below its top folder.

    Raises GwsssError when it is damaged, and where two names differ in capital letters alone or not at all: which of
    them PyTorch would read, who looks at one of them cannot tell.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except Exception as error:  # a damaged archive raises almost anything
        raise GwsssError(f"{path} is damaged ({error}); copy or export it again") from None
    if len({name.lower() for name in names}) != len(names):
        raise GwsssError(f"{path} is damaged (it holds a name twice); copy or export it again")
    return names


def archive_bytes(path: Path, name: str) -> bytes:
    """Content of `name` below the archive's top folder. Raises GwsssError when it is not there or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            full = next(x for x in archive.namelist() if x.partition("/")[2] == name)
            return archive.read(full)
    except StopIteration:
        raise GwsssError(f"{path} lacks {name}; export it again") from None
    except Exception as error:
        raise GwsssError(f"{path} is damaged ({error}); copy or export it again") from None


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise GwsssError(f"model {path} does not exist; give the file of {EXPECTED}")
    return path


def _kind_of_archive(path: Path) -> Kind:
    names = archive_names(path)
    if any(name.startswith("data/aotinductor/") for name in names):
        if any(name.startswith("models/") for name in names):
            raise GwsssError(f"{path} holds an exported program and compiled code; export one of them to a file")
        return "aoti"
    if any(name.startswith("models/") for name in names):
        return "torch-export"
    if "data.pkl" in names:
        return "checkpoint"
    raise GwsssError(f"{path} is a zip archive, but no model that this package reads: it must be {EXPECTED}")


def _kind_of_engine(path: Path, head: bytes) -> Kind:
    """By its metadata; engines of others by their first letter."""
    text = _engine_text(path)
    metadata = Metadata.from_json(text, str(path)) if text is not None else read_beside(path)
    if metadata is not None and metadata.format in ("tensorrt", "tensorrt-rtx"):
        return "tensorrt-rtx" if metadata.format == "tensorrt-rtx" else "tensorrt"
    return "tensorrt-rtx" if head[:1] == b"v" else "tensorrt"


def _archive_text(path: Path, name: str) -> str | None:
    if name not in archive_names(path):
        return None
    return archive_bytes(path, name)[:LONGEST_JSON].decode("utf-8", "replace")


def _engine_text(path: Path) -> str | None:
    """The JSON in the engine's name, which stands in the file as it is."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(f"{ENGINE_MARK}{{".encode())
        if start < 0:
            return None
        start += len(ENGINE_MARK)
        text = content[start : start + LONGEST_JSON].decode("ascii", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return text[:end]


def _onnx_fields(path: Path) -> dict[str, str] | None:
    """The metadata_props of an ONNX file; None when it is none. Only the outermost fields are looked at."""
    seen: set[int] = set()
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for number, start, end in _protobuf_fields(content, 0, len(content)):
                if number not in MODEL_FIELDS:
                    return None
                seen.add(number)
                if number == METADATA_PROPS and end - start < LONGEST_JSON:
                    entry = {key: content[a:b].decode() for key, a, b in _protobuf_fields(content, start, end)}
                    found[entry.get(1, "")] = entry.get(2, "")
    except (ValueError, IndexError):
        return None
    return found if {IR_VERSION, GRAPH} <= seen else None


def _protobuf_fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field between two offsets. Raises ValueError for what is no protobuf."""
    position = start
    while position < end:
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, after = _varint(content, position)
        elif wire == BYTES:
            length, position = _varint(content, position)
            after = position + length
        elif wire in (FIXED32, FIXED64):
            after = position + (4 if wire == FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire}")
        if after > end or number == 0:
            raise ValueError("a field ends outside of the file")
        yield number, position, after
        position = after


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number of more than 64 bits")
