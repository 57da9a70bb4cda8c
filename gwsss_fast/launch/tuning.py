"""Which tiles a kernel gets: tuned ones for known cards, else a stated heuristic, or those found on this machine.

`tuned/<card>.json` maps a kernel's name to a list of rows {"key": {...}, "blocks": {...}, "num_warps", "num_stages"}.
A row applies when every entry of its key equals the call's; the first that does is taken. With GWSSS_AUTOTUNE=1 a
kernel called with a new key is timed with its candidates, and the best is kept in `$GWSSS_CACHE/tuned`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwsss_fast import files
from gwsss_fast.launch.launcher import Tiles, interpreted, launch
from gwsss_fast.launch.launcher import record as recording

SHIPPED = Path(__file__).with_name("tuned")
Key = dict[str, Any]


def card_of(tensor: Tensor) -> str:
    """ "sm_90" and the like for a tensor on a GPU; "none" elsewhere."""
    if not tensor.is_cuda:
        return "none"
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return f"sm_{major}{minor}"


def dtype_name(tensor: Tensor) -> str:
    """ "float16", "bfloat16" or "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def own_folder() -> Path:
    """Where configurations found on this machine are kept."""
    base = os.environ.get("GWSSS_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gwsss_fast_tuned"


@functools.cache
def _table(card: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of this card by kernel: those found here before those shipped."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder in (own_folder(), SHIPPED):
        path = folder / f"{card}.json"
        if path.is_file():
            for name, entries in json.loads(path.read_text(encoding="utf-8")).items():
                rows.setdefault(name, []).extend(entries)
    return rows


def _from_row(row: dict[str, Any]) -> Tiles:
    return Tiles({k: int(v) for k, v in row["blocks"].items()}, int(row["num_warps"]), int(row["num_stages"]))


def lookup(name: str, card: str, key: Key) -> Tiles | None:
    """The tabled tiles of kernel `name` for `key` on `card`, if any."""
    for row in _table(card).get(name, []):
        if all(key.get(field) == value for field, value in row["key"].items()):
            return _from_row(row)
    return None


def tiles_for(
    name: str,
    tensor: Tensor,
    key: Key,
    heuristic: Tiles,
    candidates: Sequence[Tiles] = (),
    run: Callable[[Tiles], None] | None = None,
) -> Tiles:
    """The tiles of kernel `name` for this call: the table's, else timed ones under GWSSS_AUTOTUNE=1, else `heuristic`.

    key: what the choice may hang on (sizes, dtype). run: starts the kernel once with given tiles, for timing.
    """
    card = card_of(tensor)
    found = lookup(name, card, key)
    if found is not None:
        return found
    if os.environ.get("GWSSS_AUTOTUNE") == "1" and tensor.is_cuda and run is not None and candidates:
        return _tune(name, card, key, [heuristic, *candidates], run)
    return heuristic


def _tune(name: str, card: str, key: Key, candidates: Sequence[Tiles], run: Callable[[Tiles], None]) -> Tiles:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    timed: list[tuple[float, int]] = []
    for number, tiles in enumerate(candidates):
        try:
            timed.append((float(do_bench(lambda tiles=tiles: run(tiles), warmup=5, rep=20)), number))
        except OutOfResources:
            continue
    best = candidates[min(timed)[1]] if timed else candidates[0]
    path = own_folder() / f"{card}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    row = {"key": key, "blocks": best.blocks, "num_warps": best.num_warps, "num_stages": best.num_stages}
    content.setdefault(name, []).insert(0, row)
    files.write_json(path, content)
    _table.cache_clear()
    return best


__all__ = ["Tiles", "card_of", "dtype_name", "interpreted", "launch", "lookup", "recording", "tiles_for"]
