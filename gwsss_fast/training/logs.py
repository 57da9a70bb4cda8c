"""What a training tells: a progress bar (or a line every tenth), a CSV file and TensorBoard events."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gwsss_fast import distributed, files

LINES = 10  # lines of progress where there is no terminal, at most
PAUSE = 2.0  # seconds between two of them, at least


class Reporter:
    """A bar with loss and time left on a terminal; elsewhere one line at every tenth of the work. A context manager.

    total: 0 where it is not known; then there are no lines. shared: several processes do the work together; process 0
    shows its own part as if all were as far. The others show nothing.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, console: Console | None = None, *, shared: bool = False
    ) -> None:
        self.title, self.total, self.done = title, total, done
        self.pace = distributed.size() if shared else 1
        self.console = console or Console(stderr=True, quiet=not distributed.is_main())
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self.last = self.progress.get_time()
        self.task: TaskID = self.progress.add_task(title, total=total or None, completed=done, text="")

    def __enter__(self) -> Reporter:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def advance(self, text: str = "", by: int = 1) -> None:
        """`by` more of `total` are done; `text` says how it stands."""
        before, self.done = self.done, self.done + by * self.pace
        if self.total:
            self.done = min(self.done, self.total)
        self.progress.update(self.task, completed=self.done, text=text)
        if self.console.is_terminal or not self.total:
            return
        if self.done * LINES // self.total == before * LINES // self.total:
            return
        now = self.progress.get_time()
        if now - self.last < PAUSE and self.done < self.total:
            return
        self.last = now
        left = self.progress.tasks[0].time_remaining
        rest = "" if left is None or self.done >= self.total else f", {left / 60:.0f} min {left % 60:02.0f} s left"
        words = f"{self.title} {100 * self.done // self.total} % ({self.done}/{self.total}){text and ' '}{text}{rest}"
        self.console.print(words, highlight=False, soft_wrap=True)


def say(console: Console, text: str) -> None:
    """One line, as it is: names of files and classes are no markup, and a long line is not cut."""
    console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)


class TrainingLog:
    """Rows of numbers by step in FOLDER/NAME.csv and FOLDER/tensorboard/NAME.

    start: the step that training continues from; rows of later steps, which a broken run has left, are dropped.
    """

    def __init__(self, folder: Path, name: str, columns: tuple[str, ...], start: int = 0) -> None:
        self.path, self.columns = folder / f"{name}.csv", ("step", *columns)
        rows = _rows(self.path, start) if start else []
        files.write_text(self.path, _csv([list(self.columns), *rows]))
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.events = SummaryWriter(str(folder / "tensorboard" / name), purge_step=start or None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one row; missing columns stay empty."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv([[step, *(_number(values.get(name)) for name in self.columns[1:])]]))
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        self.events.close()


def _rows(path: Path, start: int) -> list[list[Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    whole = [row for row in rows if len(row) == len(header) and row[0].isdigit()]  # the last may be cut off
    return [row for row in whole if int(row[0]) <= start]


def _csv(rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
