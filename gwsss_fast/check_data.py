"""`python -m gwsss_fast.check_data DIR`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from gwsss_fast import cli
from gwsss_fast.data.check import CheckReport, check_dataset
from gwsss_fast.data.class_names import VOC_CLASSES, find_classes
from gwsss_fast.data.dataset import Layout, MissingFilesError
from gwsss_fast.data.images import MAX_MEGAPIXELS, set_pixel_limit
from gwsss_fast.data.voc_results import RESULTS, check_results, read_test_list
from gwsss_fast.errors import GwsssError

SHOWN = 20  # files named at most; the rest are counted


@dataclass(frozen=True)
class Arguments:
    """Options of the check; those that `train` has mean the same there."""

    root: tyro.conf.Positional[str]
    """Folder of the data set, a CSV file, or `embedded`."""
    layout: Layout = "auto"
    """How the folder is laid out; `auto` looks."""
    classes_file: str | None = None
    """Text file naming the foreground classes, one a line."""
    train_list: str | None = None
    """List of the images whose masks score the maps."""
    train_aug_list: str | None = None
    """List of the training images."""
    val_list: str | None = None
    """List of the validation images."""
    labels: str = "auto"
    """Source of image-level labels: auto, list, cls_labels, masks, xml or a .npy file."""
    saliency: str | None = None
    """Folder of saliency maps."""
    voc_results: str | None = None
    """Check a submission to the VOC server instead: FOLDER/results/VOC2012/Segmentation/comp6_test_cls."""
    test_list: str = "test"
    """List of the test images, a path or a name in ImageSets/Segmentation; with --voc-results."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Images and masks of more than so many million pixels are faults, and are not decoded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print. Exit status: 0 when all is fine, 2 with one line on stderr when the data cannot be used."""
    return cli.run(lambda: _check(sys.argv[1:] if arguments is None else arguments))


def _check(arguments: Sequence[str]) -> None:
    default = Arguments(root=tyro.MISSING)
    options = asdict(cli.parse(Arguments, default, arguments, "gwsss-fast check-data", "Check a data set."))
    set_pixel_limit(options.pop("max_megapixels"))
    console, errors = Console(), Console(stderr=True)
    results, test_list = options.pop("voc_results"), options.pop("test_list")
    if results is not None:
        _check_results(Path(options["root"]), Path(results), test_list, options["classes_file"])
        return
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("decoding", total=None)
        report = check_dataset(progress=lambda done, total: bar.update(task, completed=done, total=total), **options)
    _print(console, report)
    problems = [*(str(MissingFilesError([line])) for line in report.missing), *report.faults]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GwsssError(f"{problems[0]}{more}")
    console.print("No file is missing or broken.")


def _check_results(root: Path, results: Path, test_list: str, classes_file: str | None) -> None:
    records = read_test_list(test_list, root)
    faults = check_results(results, records, len(find_classes(root, classes_file) or VOC_CLASSES))
    _list(Console(), "faults", faults)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise GwsssError(f"{faults[0]}{more}")
    print(f"{len(records)} masks, complete and as the server reads them: {results / RESULTS}")


def _print(console: Console, report: CheckReport) -> None:
    data = report.data
    console.print(f"{escape(str(data.root))}: layout {data.layout}, {len(data.classes)} classes", soft_wrap=True)
    console.print(f"expected: {escape(report.expected)}", soft_wrap=True)
    table = Table("", *(split.name for split in report.splits))
    for row in ("images", "masks", "saliency"):
        table.add_row(row, *(f"{getattr(split, row):,}" for split in report.splits))
    table.add_section()
    for index, name in enumerate(data.classes):
        table.add_row(escape(name), *(f"{split.per_class[index]:,}" for split in report.splits))
    console.print(table)
    if not any(split.masks for split in report.splits):
        console.print("no masks: nothing will be scored")
    if all(split.name != "val" for split in report.splits):
        console.print("no validation images: `train` will predict none; `predict` takes any image")
    _list(console, "missing files", report.missing)
    _list(console, "files or labels that cannot be used", report.faults)
    _list(console, "labels that differ", [str(difference) for difference in report.differences])
    _list(console, "labels that are not needed and cannot be read", report.unread)


def _list(console: Console, title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.print(f"{title}: {len(lines):,}")
    for line in lines[:SHOWN]:
        console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
    if len(lines) > SHOWN:
        console.print(f"  ... and {len(lines) - SHOWN:,} more")


if __name__ == "__main__":
    sys.exit(main())
