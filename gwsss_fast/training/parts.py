"""How a batch is divided: into one share a process, and each share into the parts that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwsss_fast import distributed

_DROPS = 4  # keeps the keys of ordinary dropout apart from other streams of the seed


@dataclass(frozen=True)
class Share:
    """What falls to this process of a batch.

    items: tensors (n, ...) by name. rows: (n,) their positions in the batch. total: items of the whole batch. idle: the
    batch holds less than one item a process, and none for this one; it computes another's, which count for nothing.
    """

    items: dict[str, Tensor]
    rows: tuple[int, ...]
    total: int
    idle: bool = False


@dataclass(frozen=True)
class Part:
    """What is computed at a time.

    rows: (n,) positions in the batch. inside: which of the share's items these are. weight: a mean over the items times
    this, summed over the parts of a process and averaged over the processes as DistributedDataParallel does, is the
    mean over the batch.
    """

    items: dict[str, Tensor]
    rows: Tensor
    inside: slice
    weight: float
    share: Share


def own_rows(total: int) -> tuple[list[int], bool]:
    """The positions that fall to this process of a batch of `total` items, and whether it is idle."""
    rows = distributed.share(range(total))
    return rows or [0], not rows


def split(share: Share, parts: int, device: torch.device) -> list[Part]:
    """At most `parts` parts of nearly equal size, their tensors on `device`; in all processes as many, since they wait
    for each other in each."""
    least = max(share.total // distributed.size(), 1)
    made = []
    for index in torch.arange(len(share.rows)).tensor_split(min(parts, least)):
        first, last = int(index[0]), int(index[-1]) + 1
        items = {name: value[first:last].to(device, non_blocking=True) for name, value in share.items.items()}
        weight = 0.0 if share.idle else (last - first) * distributed.size() / share.total
        made.append(Part(items, torch.tensor(share.rows[first:last]), slice(first, last), weight, share))
    return made


def of_share(batch: Sequence[int]) -> list[int]:
    """The entries of a batch, such as positions in a data set, that this process loads."""
    return [batch[row] for row in own_rows(len(batch))[0]]


def keys_of_rows(rows: Sequence[int], seed: int, step: int) -> Tensor:
    """What ordinary dropout goes by, (n,) int64: the same for a row of a batch, whichever process and part has it."""
    words = [np.random.SeedSequence([seed, _DROPS, step, row]).generate_state(1, np.uint64)[0] for row in rows]
    return torch.tensor([int(word >> np.uint64(1)) for word in words])
