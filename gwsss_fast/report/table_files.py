"""A table of the paper with our numbers: on the terminal, as CSV and as one HTML file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as TextTable
from rich.text import Text

from gwsss_fast.evaluation.aggregate import Aggregate
from gwsss_fast.files import write_text
from gwsss_fast.report.build import template
from gwsss_fast.report.tables import MEASURES, Line, Table

HEADER = (
    "row",
    "score",
    "paper",
    "ours",
    "95 % interval",
    "seeds",
    "paper's effect",
    "our effect",
    "direction",
    "note",
)
COLUMNS = (
    *("table", "row", "label", "score", "paper", "mean", "std", "low", "high", "seeds", "values"),
    *("paper_effect", "effect", "effect_low", "effect_high", "direction", "note"),
)


def text_table(table: Table, lines: Sequence[Line], facts: Sequence[str]) -> TextTable:
    """What is printed."""
    result = TextTable(*HEADER, title=title(table), caption=Text("\n".join(facts)))
    for line in lines:
        result.add_row(*(Text(cell) for cell in cells(line)))
    return result


def write_table(folder: Path, table: Table, lines: Sequence[Line], facts: Sequence[str]) -> list[Path]:
    """Write FOLDER/table-N.csv, .md and .html, and give their paths."""
    stem = folder / f"table-{table.number}"
    page = template("tables.html").render(
        title=title(table), header=HEADER, rows=[cells(line) for line in lines], facts=facts
    )
    contents = {".csv": csv_text(table, lines), ".md": markdown(table, lines, facts), ".html": page}
    for suffix, text in contents.items():
        write_text(stem.with_suffix(suffix), text)
    return [stem.with_suffix(suffix) for suffix in contents]


def title(table: Table) -> str:
    """The table's heading."""
    return f"Table {['I', 'II', 'III', 'IV', 'V'][table.number - 1]} of the paper: {table.title}"


def cells(line: Line) -> list[str]:
    """One line of the table for people."""
    return [
        line.row.label,
        MEASURES[line.measure].title,
        _number(line.paper),
        _spread(line.ours),
        _interval(line.ours),
        " ".join(map(str, line.seeds)),
        _number(line.wanted, "+.1f"),
        _by_seed(line.effect),
        line.verdict,
        line.reason,
    ]


def csv_text(table: Table, lines: Sequence[Line]) -> str:
    """Every number in full; an empty cell where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        ours, effect = line.ours, line.effect
        values: list[Any] = [table.number, line.row.name, line.row.label, line.measure, line.paper]
        values += [ours.mean, ours.std, *ours.interval] if ours else [None] * 4
        values += [
            " ".join(map(str, line.seeds)),
            " ".join(f"{x:.4f}" for x in ours.values) if ours else "",
            line.wanted,
        ]
        values += [effect.mean, *effect.interval] if effect else [None] * 3
        writer.writerow(["" if x is None or x != x else x for x in map(_rounded, [*values, line.verdict, line.reason])])
    return stream.getvalue()


def markdown(table: Table, lines: Sequence[Line], facts: Sequence[str]) -> str:
    """The same table in Markdown."""
    rows = [HEADER, ["---"] * len(HEADER), *map(cells, lines)]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([f"# {title(table)}", body, "\n".join(f"- {fact}" for fact in facts)]) + "\n"


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _spread(found: Aggregate | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.1f}" if len(found.values) == 1 else f"{found.mean:.1f} ± {found.std:.1f}"


def _by_seed(found: Aggregate | None) -> str:
    """The mean and, of several seeds, each."""
    if found is None:
        return "-"
    values = "" if len(found.values) == 1 else f" ({' '.join(f'{x:+.1f}' for x in found.values)})"
    return f"{found.mean:+.1f}{values}"


def _interval(found: Aggregate | None) -> str:
    return "-" if found is None or len(found.values) == 1 else "{:.1f} to {:.1f}".format(*found.interval)
