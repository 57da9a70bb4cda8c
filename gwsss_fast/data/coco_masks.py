"""Class masks of COCO's images, drawn from their annotations whenever one is read.

A mask has a path like any other, but there is no file under it: FOLDER/NAME.coco, where FOLDER is the cached index of
an annotation file (see `gwsss_fast.data.coco`). Objects are painted from the largest to the smallest, so that nothing
hides a smaller thing; crowd regions are 255 where no object covers them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwsss_fast.errors import GwsssError

SUFFIX = ".coco"
INDEX, OBJECTS = "index.npz", "objects.bin"
CROWD = 255


@dataclass(frozen=True)
class StoredIndex:
    """What an index knows of its images: `labels` (n, L) uint8 multi-hot, `offsets` (n + 1,) into objects.bin."""

    folder: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    sizes: NDArray[np.int32]  # (n, 2) heights and widths
    labels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    rows: dict[str, int]  # file name without suffix -> row

    def objects(self, row: int) -> list[list[Any]]:
        """[class number from 1, crowd or not, area or None, segmentation] of each object of an image."""
        start, end = self.offsets[row : row + 2].tolist()
        with (self.folder / OBJECTS).open("rb") as file:
            file.seek(start)
            return json.loads(zlib.decompress(file.read(end - start)))


def pack(objects: list[list[Any]]) -> bytes:
    """The bytes of `StoredIndex.objects`."""
    return zlib.compress(json.dumps(objects, separators=(",", ":")).encode(), 1)


def mask_path(folder: Path, file: str) -> Path:
    """Where the mask of an image seems to lie."""
    return folder / f"{Path(file).stem}{SUFFIX}"


@lru_cache(maxsize=8)
def stored_index(folder: Path) -> StoredIndex:
    """An index as it lies on disk. Raises GwsssError when it does not (the cache was cleared, say)."""
    try:
        with np.load(folder / INDEX) as content:
            classes, files = (tuple(content[name].tolist()) for name in ("classes", "files"))
            labels = np.unpackbits(content["labels"], axis=1, count=len(classes))
            sizes, offsets = content["sizes"], content["offsets"]
    except Exception as error:  # a broken file breaks anywhere
        raise GwsssError(f"{folder} is no complete index of annotations ({error}); delete it and run again") from error
    return StoredIndex(
        folder, classes, files, sizes, labels, offsets, {Path(file).stem: row for row, file in enumerate(files)}
    )


def pycocotools_mask() -> Any:
    """The module pycocotools.mask. Raises GwsssError when it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise GwsssError("COCO needs pycocotools; install it with: pip install 'gwsss-fast[coco]'") from error
    return mask


def draw_mask(path: Path) -> NDArray[np.uint8]:
    """The mask (H, W) under a path of `mask_path`. Raises GwsssError for a path of no index, or a broken outline."""
    index = stored_index(path.parent)
    row = index.rows.get(path.stem)
    if row is None:
        raise GwsssError(f"mask {path}: the index holds no image {path.stem}")
    height, width = index.sizes[row].tolist()
    try:
        return paint(index.objects(row), height, width)
    except GwsssError:
        raise
    except Exception as error:  # pycocotools raises almost anything on broken outlines
        raise GwsssError(f"mask {path}: the annotation of {path.stem} cannot be drawn ({error})") from error


def paint(objects: list[list[Any]], height: int, width: int) -> NDArray[np.uint8]:
    """The mask (height, width) of an image's objects, as `StoredIndex.objects` gives them."""
    tool = pycocotools_mask()
    codes = []
    for _, crowd, area, outline in objects:
        code = outline
        if isinstance(outline, list):
            code = tool.merge(tool.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            code = tool.frPyObjects(outline, height, width)
        codes.append((bool(crowd), float(tool.area(code)) if area is None else float(area), code))
    # Of objects of one size the first stays on top, so it is painted last.
    order = sorted(range(len(codes)), key=lambda i: (not codes[i][0], -codes[i][1], -i))
    mask = np.zeros((height, width), np.uint8)
    for i in order:
        mask[tool.decode(codes[i][2]) > 0] = CROWD if codes[i][0] else objects[i][0]
    return mask
