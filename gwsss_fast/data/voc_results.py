"""A submission to PASCAL VOC's server: results/VOC2012/Segmentation/comp6_test_cls/ID.png of the listed test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gwsss_fast.data.images import open_image, read_size
from gwsss_fast.data.lists import read_list
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.records import MissingFilesError, Record
from gwsss_fast.errors import GwsssError

RESULTS = Path("results/VOC2012/Segmentation/comp6_test_cls")
_LISTS = Path("ImageSets/Segmentation")


def read_test_list(name: str, root: Path) -> list[Record]:
    """The images of a list without labels: a path, or the name of a list in `root`.

    Images lie in JPEGImages of the folder that the list belongs to, else in `root`'s. Raises GwsssError when the list
    or an image does not exist.
    """
    candidates = (Path(name), root / _LISTS / name, root / _LISTS / f"{name}.txt")
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise GwsssError(f"test list {name} does not exist, neither as a path nor in {root / _LISTS}")
    path = path.resolve()
    own = path.parents[2] if path.parts[-3:-1] == _LISTS.parts else root
    folder = next((base / "JPEGImages" for base in (own, root) if (base / "JPEGImages").is_dir()), own / "JPEGImages")
    records, missing = [], []
    for entry in read_list(path):
        image = folder / f"{entry.id}.jpg"
        where = f"{path}, line {entry.line}"
        records.append(Record(entry.id, image, where=where))
        if not image.is_file():
            missing.append(f"{where}: {image}")
    if missing:
        raise MissingFilesError(missing)
    return records


def check_results(output: Path, records: Sequence[Record], classes: int) -> list[str]:
    """What the server would refuse, one line a fault: masks that are missing, superfluous or not as it reads them.

    A mask is an indexed PNG of its image's size, with VOC's colours and the values 0 to `classes`.
    """
    folder = output / RESULTS
    if not folder.is_dir():
        return [f"{folder} does not exist; a submission holds {RESULTS}/ID.png"]
    wanted = {f"{record.id}.png": record for record in records}
    present = {path.name for path in folder.iterdir()}
    faults = [f"{folder / name} is missing" for name in wanted if name not in present]
    faults += [f"{folder / name} is not on the list; remove it" for name in sorted(present - wanted.keys())]
    for name, record in wanted.items():
        fault = _fault(folder / name, record, classes) if name in present else None
        if fault is not None:
            faults.append(f"{folder / name} {fault}")
    return faults


def _fault(path: Path, record: Record, classes: int) -> str | None:
    try:
        with open_image(path, "result") as image:
            image.load()
            kind, mode, size = image.format, image.mode, image.size
            values, palette = np.unique(np.asarray(image)), image.getpalette() or []
    except Exception as error:  # decoders raise almost anything on broken files
        return f"cannot be decoded ({error})"
    if kind != "PNG" or mode != "P":
        return f"is a {kind} of mode {mode}; the server wants an indexed PNG"
    if size != (wanted := read_size(record.image)):
        return f"has {size[0]}x{size[1]} pixels, its image {wanted[0]}x{wanted[1]}"
    if values.max() > classes:
        return f"holds the value {values.max()}; classes run from 0 to {classes}, and 255 must not be predicted"
    if palette[: 3 * (int(values.max()) + 1)] != voc_palette()[: int(values.max()) + 1].ravel().tolist():
        return "has other colours than VOC's palette"
    return None
