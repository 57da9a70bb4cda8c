"""Which tiles a kernel gets: those found on this machine, else those shipped for its card, else a stated heuristic.

A table `<card>.json`, in `tuned/` beside this file and in the user's own folder, holds {"about": "...", "kernels":
{name: [row, ...]}} with rows {"key": {...}, "blocks": {...}, "num_warps": n, "num_stages": n}, and "registers": n where
a thread's are limited. A row applies when every entry of its key equals the call's; the first that does is taken, the
user's own before the shipped ones. With GWSSS_AUTOTUNE=1 a kernel that the user's own table does not know is timed with
its candidates on first use, and the fastest is kept there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwsss_fast import files
from gwsss_fast.launch.launcher import Tiles, interpreted, launch, recorded_card
from gwsss_fast.launch.launcher import record as recording

log = logging.getLogger("gwsss_fast")

SHIPPED = Path(__file__).with_name("tuned")
OWN_ABOUT = "Found on this machine with GWSSS_AUTOTUNE=1; remove the file to forget."
Key = dict[str, Any]
Rows = dict[str, list[tuple[Key, Tiles]]]


@dataclass(frozen=True)
class Request:
    """What `tiles_for` was asked, for programs that choose the rows of a table."""

    name: str
    key: Key
    heuristic: Tiles
    candidates: tuple[Tiles, ...]
    run: Callable[[Tiles], None] | None


_requests: list[Request] | None = None


@contextmanager
def requests() -> Iterator[list[Request]]:
    """Inside the block every question for tiles is listed too."""
    global _requests
    before, _requests = _requests, []
    try:
        yield _requests
    finally:
        _requests = before


def card_of(tensor: Tensor) -> str:
    """ "sm_90" and the like for a tensor on a GPU; elsewhere the card that starts are recorded for, or "none"."""
    if not tensor.is_cuda:
        return recorded_card()
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return f"sm_{major}{minor}"


def dtype_name(tensor: Tensor) -> str:
    """ "float16", "bfloat16" or "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def own_folder() -> Path:
    """Where configurations found on this machine are kept."""
    return _tuned_in(os.environ.get("GWSSS_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache")


@functools.cache
def _tuned_in(base: str) -> Path:
    return Path(base).expanduser() / "gwsss_fast_tuned"


def to_row(key: Key, tiles: Tiles) -> dict[str, Any]:
    """A row of a table."""
    row = {"key": key, "blocks": tiles.blocks, "num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    return row if tiles.registers is None else {**row, "registers": tiles.registers}


def _from_row(row: dict[str, Any]) -> tuple[Key, Tiles]:
    """Key and tiles of a row. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    tiles = Tiles(dict(row["blocks"]), row["num_warps"], row["num_stages"], row.get("registers"))
    # HELD counts tiles that are held, which may be none.
    sizes = [size for name, size in tiles.blocks.items() if name != "HELD" or size != 0]
    if not all(type(number) is int and number > 0 for number in (*sizes, *tiles.options.values())):
        raise ValueError(f"{row} has a size that is no positive whole number")
    return dict(row["key"]), tiles


@functools.cache
def read_table(path: Path) -> Rows:
    """The rows of a table by kernel; none, and one warning, for a file that is damaged or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: [_from_row(row) for row in rows] for name, rows in content["kernels"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is no table of kernel tiles (%s) and is left out; remove it", path, error)
        return {}


def lookup(name: str, card: str, key: Key, blocks: Sequence[str], folder: Path) -> Tiles | None:
    """The tiles that the table of `folder` has for `key` on `card`, if any.

    blocks: the names of the kernel's block sizes; a row with others was written for another version of it.
    """
    return _lookup(name, card, tuple(key.items()), tuple(blocks), folder)


@functools.lru_cache(maxsize=4096)  # every start of a kernel asks
def _lookup(name: str, card: str, items: tuple[tuple[str, Any], ...], blocks: tuple[str, ...], folder: Path) -> Any:
    key = dict(items)
    for wanted, tiles in read_table(folder / f"{card}.json").get(name, []):
        if all(key.get(field) == value for field, value in wanted.items()) and set(tiles.blocks) == set(blocks):
            return tiles
    return None


def read_again() -> None:
    """Tables may have been written since they were read."""
    read_table.cache_clear()
    _lookup.cache_clear()


def tiles_for(
    name: str,
    tensor: Tensor,
    key: Key,
    heuristic: Tiles,
    candidates: Sequence[Tiles] = (),
    run: Callable[[Tiles], None] | None = None,
) -> Tiles:
    """The tiles of kernel `name` for this call: the user's, else timed ones under GWSSS_AUTOTUNE=1, else the shipped,
    else `heuristic`.

    key: what the choice may hang on (sizes, dtype). candidates: what may be tried besides the heuristic. run: starts
    the kernel once with given tiles, and may be called any number of times.
    """
    if _requests is not None:
        _requests.append(Request(name, key, heuristic, tuple(candidates), run))
    card, blocks = card_of(tensor), tuple(heuristic.blocks)
    # What was found here holds for this machine's card; a recorded start is for one that need not be here.
    found = lookup(name, card, key, blocks, own_folder()) if tensor.is_cuda else None
    if found is not None:
        return found
    shipped = lookup(name, card, key, blocks, SHIPPED) or heuristic
    if run is not None and candidates and _may_time(tensor):
        return tune(name, card, key, distinct([shipped, heuristic, *candidates]), run)
    return shipped


def _may_time(tensor: Tensor) -> bool:
    """Whether tuning was asked for and is possible now: timing synchronises, which a graph capture forbids."""
    asked = os.environ.get("GWSSS_AUTOTUNE") == "1"
    return asked and tensor.is_cuda and not torch.cuda.is_current_stream_capturing()


def distinct(candidates: Sequence[Tiles]) -> list[Tiles]:
    """Each once, in order."""
    return [tiles for number, tiles in enumerate(candidates) if tiles not in candidates[:number]]


def measure(run: Callable[[], None]) -> float:
    """Milliseconds that `run` takes on the GPU (median), the L2 cache cleared before every run."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=5, rep=20, return_mode="median"))


def tune(name: str, card: str, key: Key, candidates: Sequence[Tiles], run: Callable[[Tiles], None]) -> Tiles:
    """The fastest of `candidates`, written to the user's table; the first where none of them runs."""
    timed: list[tuple[float, int]] = []
    for number, tiles in enumerate(candidates):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # Triton prints the whole program that ptxas refused
                timed.append((measure(functools.partial(run, tiles)), number))
        except _refusals() as error:
            if isinstance(error, RuntimeError) and "PassManager::run failed" not in str(error):
                raise  # nothing that the compiler gave up on: a mistake of ours, or of a kernel that broke the GPU
            log.info("%s: %s cannot run: %s", name, tiles, str(error).splitlines()[0] if str(error) else error)
    if not timed:
        return candidates[0]
    milliseconds, best = min(timed)
    log.info("%s %s: %s, %.4f ms, of %d tried", name, key, candidates[best], milliseconds, len(candidates))
    keep(card, name, key, candidates[best])
    return candidates[best]


def _refusals() -> tuple[type[Exception], ...]:
    """What Triton raises for tiles that a card cannot take or its compiler gives up on."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return OutOfResources, PTXASError, CompilationError, RuntimeError


def keep(card: str, name: str, key: Key, tiles: Tiles) -> None:
    """Write a row to the user's table, before all others and instead of one with the same key."""
    path = own_folder() / f"{card}.json"
    read_again()  # another process may have written since
    tables = {kernel: [to_row(*row) for row in rows] for kernel, rows in read_table(path).items()}
    others = [row for row in tables.get(name, []) if row["key"] != key]
    tables[name] = [to_row(key, tiles), *others]
    files.write_json(path, {"about": OWN_ABOUT, "kernels": tables})
    read_again()


__all__ = ["Request", "Tiles", "card_of", "dtype_name", "interpreted", "launch", "lookup", "recording", "tiles_for"]
