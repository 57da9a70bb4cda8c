"""`python -m benchmarks.plot`: draws the JSON lines of `benchmarks/results` as pictures, one a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.harness import records
from benchmarks.harness.records import Record


def newest(found: Sequence[Record]) -> list[Record]:
    """The last line of each operation, pass, size, dtype and peer: earlier ones are history."""
    last: dict[tuple[str, ...], Record] = {}
    for record in found:
        if "p50_ms" in record:
            key = tuple(str(record[name]) for name in ("operation", "pass", "size", "dtype", "peer"))
            last[key] = record
    return list(last.values())


def draw(found: Sequence[Record], path: Path) -> None:
    """A panel for each operation and pass: bars of the median, whiskers from p20 to p80, ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, ...], list[Record]] = {}
    for key, members in records.groups(newest(found)).items():
        panels[key] = sorted(members, key=lambda record: record["p50_ms"])
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (key, members) in zip(axes.flat, panels.items(), strict=False):
        middle = [record["p50_ms"] for record in members]
        below = [record["p50_ms"] - record["p20_ms"] for record in members]
        above = [record["p80_ms"] - record["p50_ms"] for record in members]
        colours = ["tab:orange" if record["ours"] else "tab:gray" for record in members]
        axis.barh([record["peer"] for record in members], middle, xerr=(below, above), color=colours)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("ms, median and p20 to p80")
        axis.set_title(", ".join(key), fontsize=9)
    figure.suptitle(str(next(iter(panels.values()))[0].get("device", "")))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON lines and the pictures")
    options = parser.parse_args(words)
    drawn = 0
    for path in sorted(options.results.glob("*.jsonl")):
        found = records.read(path)
        if not newest(found):
            print(f"{path.name}: no times in it")
            continue
        draw(found, path.with_suffix(".png"))
        print(f"written: {path.with_suffix('.png')}")
        drawn += 1
    if not drawn:
        print(
            f"benchmarks.plot: no times in {options.results}; `python -m benchmarks.on_gpu` makes some", file=sys.stderr
        )
    return 0 if drawn else 2


if __name__ == "__main__":
    sys.exit(main())
