"""One function that opens every data set, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gwsss_fast.data import coco, cub, folder, voc
from gwsss_fast.data.records import DataSet, MissingFilesError, OnFault, Record, Split, raise_fault
from gwsss_fast.errors import GwsssError

__all__ = ["DataSet", "Layout", "MissingFilesError", "Record", "Split", "find_root", "open_dataset"]

Layout = Literal["auto", "voc", "coco", "cub", "folder", "csv", "embedded"]


def open_dataset(
    root: str | Path,
    *,
    layout: Layout = "auto",
    classes_file: str | Path | None = None,
    train_list: str | Path | None = None,
    train_aug_list: str | Path | None = None,
    val_list: str | Path | None = None,
    labels: str | Path = "auto",
    saliency: str | Path | None = None,
    seed: int = 0,
    on_fault: OnFault = raise_fault,
) -> DataSet:
    """Open the data set in the folder `root`; `"embedded"` makes the generated one, of the given `seed`.

    Lists are paths or the names of lists in `ImageSets/Segmentation`. `labels` says where the image-level labels of
    VOC layout come from: `list`, `cls_labels`, `masks`, `xml`, a `.npy` file, or `auto`, the first of these that
    knows every image.

    Raises GwsssError naming file and line for whatever is missing, empty or contradictory. Of missing images, malformed
    lines, and labels that lack or cannot be read `on_fault` is told; if it does not raise, they are left out.
    """
    root, layout = find_root(root, layout, seed=seed)
    options = {"classes_file": classes_file, "val_list": val_list, "saliency": saliency}
    if layout in ("voc", "embedded"):
        lists = {"train_list": train_list, "train_aug_list": train_aug_list}
        return voc.VocFolder(root, labels=labels, on_fault=on_fault, **lists, **options).dataset(layout)
    if any(name is not None for name in (train_list, train_aug_list)) or labels != "auto":
        raise GwsssError(f"train_list, train_aug_list and labels are for VOC layout; {root} has the layout {layout}")
    if layout in ("coco", "cub"):
        if classes_file is not None or val_list is not None:
            raise GwsssError(f"classes_file and val_list are not for {root}: layout {layout} has files for both")
        return (coco.open_coco if layout == "coco" else cub.open_cub)(root, saliency=saliency, on_fault=on_fault)
    if layout == "csv":
        return folder.open_csv(_csv_file(root), on_fault=on_fault, **options)
    return folder.open_folder(root, **options)


def find_root(root: str | Path, layout: Layout, *, seed: int = 0) -> tuple[Path, Layout]:
    """The folder (or CSV file) that holds the data, and its layout when that is `auto`.

    Raises GwsssError when it does not exist or resembles no layout.
    """
    if str(root) == "embedded" or layout == "embedded":
        from gwsss_fast.data.embedded import build_embedded  # drawing tools, needed for nothing else

        return build_embedded(seed=seed), "embedded"
    root = Path(root)
    if not root.exists():
        raise GwsssError(f"data folder {root} does not exist; name a folder, or `embedded` for the built-in data set")
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise GwsssError(f"{root} is a file; name the data folder, or a CSV file of `file,class1|class2` lines")
        return root, "csv"
    for below in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if layout in ("auto", "voc") and ((below / "JPEGImages").is_dir() or (below / "ImageSets").is_dir()):
            return below, "voc"
    published: tuple[tuple[Layout, str, Callable[[Path], bool]], ...] = (
        ("coco", "coco2014", coco.looks_like_coco),
        ("cub", "CUB_200_2011", cub.looks_like_cub),
    )
    for name, usual, fits in published:
        found = next((path for path in (root, root / usual) if layout in ("auto", name) and fits(path)), None)
        if found is not None:
            return found, name
    if layout != "auto":
        return root, layout
    if folder.find_csv(root) is not None:
        return root, "csv"
    if folder.looks_like_folder(root):
        return root, "folder"
    known = "; or ".join(room.EXPECTED for room in (voc, folder, coco, cub))
    raise GwsssError(f"{root} has no known layout; expected either {known}")


def _csv_file(root: Path) -> Path:
    path = root if root.is_file() else folder.find_csv(root)
    if path is None:
        raise GwsssError(f"{root} holds no train.csv of `file,class1|class2` lines")
    return path
