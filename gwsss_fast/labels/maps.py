"""Multi-scale class activation maps of all images of a split, made in groups as in training.

An image is squashed to squares of `size * scale`, so that the images of a group have one shape at every scale. Maps of
all scales and of the mirrored images are rectified, resized to the image and summed, for the initial and the graph
readout apart; each class's sum is divided by (max + 1e-5). The ensemble is the mean of the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from gwsss_fast import distributed
from gwsss_fast.data.images import read_image
from gwsss_fast.data.loading import checked, make_loader
from gwsss_fast.data.map_files import strided_shape
from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.transforms import SquareTransform
from gwsss_fast.errors import GwsssError
from gwsss_fast.models.base import evaluating
from gwsss_fast.models.precision import PRECISIONS, autocast

SCALES = (0.5, 1.0, 1.5, 2.0)
MAX_MAP_VALUES = 20_000_000  # of an image's maps at its full size, over all its classes: 5 classes at 2000 x 2000
EPSILON = 1e-5  # added to the maximum before dividing, as in the field's code


@dataclass(frozen=True)
class CamSet:
    """Class activation maps of one image for the 0-based foreground classes `keys` (n,), each (n, H, W) in [0, 1].

    size: the image's (H, W) where the maps are smaller, at stride 4 as in files; None where they have its size.
    """

    keys: NDArray[np.int64]
    initial: NDArray[np.float32]
    graph: NDArray[np.float32]
    ensemble: NDArray[np.float32]
    size: tuple[int, int] | None = None


class GroupCover(Protocol):
    """What is asked of a group sampler."""

    def cover(self, round: int) -> NDArray[np.int64]:
        """Groups (m, K) in which every image appears at least once."""


class _Readouts(NamedTuple):
    """Sums of rectified maps over draws and flips, one tensor (..., L or n, h, w) a scale at the scale's own size.

    Resizing is linear, so a sum of small maps resized once equals the sum of resized maps.
    """

    initial: list[Tensor]
    graph: list[Tensor]


class _Pending(NamedTuple):
    """An image that is not through all its groups yet."""

    keys: NDArray[np.int64]
    sums: _Readouts
    draws: int


class _Draw(NamedTuple):
    """What one group gave for an image whose groups are divided among processes.

    number: of the forward pass, which orders them. maps: of the image's classes, of all where they are predicted.
    logits: (L,). shape: the image's (H, W).
    """

    number: int
    maps: _Readouts
    logits: Tensor
    shape: tuple[int, int]


def generate_maps(
    model: nn.Module,
    split: Split,
    sampler: GroupCover,
    *,
    size: int = 224,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    rounds: int = 1,
    groups: int = 4,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    predicted_labels: bool = False,
    skip: Collection[str] = (),
    shape: tuple[int, int] | None = None,
) -> Iterator[tuple[Record, CamSet]]:
    """Yield every record of `split` once with its maps, in the order in which they are finished; of several processes
    each yields some of them, and all have to exhaust what this returns.

    The groups are those of `sampler.cover(0), ..., sampler.cover(rounds - 1)`; every image of a group gets maps from
    it, and an image drawn several times the average of its sums. `groups` of them run in one forward pass. Maps are
    made for the record's labels, or with `predicted_labels` for the classes whose sigmoid of the final logit (mean
    over scales and flips in the image's first group) exceeds 0.5 and the most likely class. Records whose id is in
    `skip` are not yielded; forward passes that only they would need are left out, and the others stay as they were.
    The maps have the image's height and width, or `shape`.

    The model is in eval mode and without gradients while it runs, and in its former mode between two results. Without
    message passing (steps = 0) initial, graph and ensemble are the same.

    Memory: images wait for their last group as sums of small maps on the CPU, 8 bytes x classes of the image x map
    positions of all scales (at stride 8, size 224 and the default scales 47 kB a class). With one round only the few
    images drawn twice wait; with more, all images do: some 0.7 GB for VOC train_aug. Nothing is written to disk.
    An image whose maps at its own size would hold more than MAX_MAP_VALUES gets them at stride 4, with all there is in
    them: the network has seen it much smaller. So the maps of one readout take at most 80 MB, or a sixteenth of what
    they would.

    Raises GwsssError for options without sense, groups that do not belong to the split, or an unreadable image.
    """
    _check(scales, size, rounds, groups, precision)
    drawn = np.concatenate([np.asarray(sampler.cover(number)) for number in range(rounds)])
    wanted = np.bincount(drawn.ravel(), minlength=len(split))
    if len(wanted) > len(split) or not wanted.all():
        raise GwsssError(f"the sampler's groups do not cover the {len(split)} images of {split.name}; build it on them")
    device = torch.device(device)
    unmade = np.array([record.id not in skip for record in split.records])
    batches = [drawn[start : start + groups] for start in range(0, len(drawn), groups)]
    batches = [batch for batch in batches if unmade[batch].any()]
    numbers = distributed.share(range(len(batches)))
    own = [batches[number] for number in numbers]
    images = _Images(split.records, predicted_labels, wanted, own)
    for number, batch, (views, shapes) in zip(
        numbers, own, _load(split.records, own, _transforms(size, scales), workers), strict=True
    ):
        maps, logits = _run(model, [view.to(device) for view in views], flip, precision)
        for place in np.ndindex(batch.shape):
            if unmade[batch[place]]:
                yield from images.add(int(batch[place]), number, maps, logits, place, shape or shapes[place])
    yield from images.divided()


def group_maps(
    model: nn.Module,
    images: Sequence[Image.Image],
    labels: Sequence[Sequence[int]] | None = None,
    *,
    size: int = 224,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> list[CamSet]:
    """Maps of the RGB images of one group, each at its own size. labels: classes of each image; None = predicted."""
    _check(scales, size, 1, 1, precision)
    squashed = [[transform(image) for image in images] for transform in _transforms(size, scales)]
    inputs = [torch.stack(views)[None].to(device) for views in squashed]
    maps, logits = _run(model, inputs, flip, precision)
    found = []
    for index, image in enumerate(images):
        known = None if labels is None else np.array(labels[index], dtype=np.int64)
        done = _add(None, maps, logits, (0, index), known)
        found.append(_finish(done, (image.height, image.width)))
    return found


def predict_labels(model: nn.Module, split: Split, **options: Any) -> NDArray[np.uint8]:
    """Multi-hot predicted labels (n, L) of every image by itself, to draw groups where no labels are known.

    The classes whose sigmoid exceeds 0.5, and the most likely one. `options` are those of `predict_logits`.
    """
    logits = distributed.unshare([*predict_logits(model, split, **options)])
    return _predicted(torch.cat(logits)).numpy().astype(np.uint8)


def predict_logits(
    model: nn.Module,
    split: Split,
    *,
    size: int = 224,
    flip: bool = True,
    batch: int = 16,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
) -> Iterator[Tensor]:
    """Logits (b, L) of every image by itself, batch after batch: the initial readout's, which others do not change.

    Of several processes each gives its share of the batches.
    """
    _check((1.0,), size, 1, batch, precision)
    order = np.arange(len(split))[:, None]
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    for images, _ in _load(split.records, distributed.share(batches), _transforms(size, (1.0,)), workers):
        with torch.inference_mode(), evaluating(model), autocast(torch.device(device), precision):
            views = [images[0], images[0].flip(-1)] if flip else [images[0]]
            logits = torch.stack([model(view.to(device)).initial_logits.float() for view in views]).mean(0)
        yield logits[:, 0].cpu()
        distributed.check()


def _run(model: nn.Module, inputs: Sequence[Tensor], flip: bool, precision: str) -> tuple[_Readouts, Tensor]:
    """Rectified maps (B, K, L, h, w) of both readouts at every scale, summed over flips; mean final logits (B, K, L).

    inputs: one batch of groups (B, K, 3, s, s) a scale. Results are float32 on the CPU.
    """
    sums = _Readouts([], [])
    logits: list[Tensor] = []
    with torch.inference_mode(), evaluating(model), autocast(inputs[0].device, precision):
        for images in inputs:
            out = model(images)
            initial, graph = out.initial_maps.float().relu(), out.maps.float().relu()
            logits.append(out.logits.float())
            if flip:
                out = model(images.flip(-1))
                initial = initial + out.initial_maps.float().relu().flip(-1)
                graph = graph + out.maps.float().relu().flip(-1)
                logits.append(out.logits.float())
            sums.initial.append(initial.cpu())
            sums.graph.append(graph.cpu())
        return sums, torch.stack(logits).mean(0).cpu()


def _add(
    before: _Pending | None,
    maps: _Readouts,
    logits: Tensor,
    place: tuple[int, ...],
    known: NDArray[np.int64] | None,
) -> _Pending:
    """Add the image at `place` (group, node) of a batch to what its earlier groups gave, for its classes alone."""
    if before is not None:
        keys = before.keys
    else:
        keys = _predicted(logits[place]).nonzero()[:, 0].numpy() if known is None else known
    if len(keys) and keys.max() >= logits.shape[-1]:
        raise GwsssError(f"label {keys.max()} is not among the model's {logits.shape[-1]} classes")
    chosen = torch.as_tensor(keys)
    new = _Readouts(*([scale[place][chosen] for scale in readout] for readout in maps))
    if before is None:
        return _Pending(keys, new, 1)
    both = _Readouts(
        *([old + more for old, more in zip(a, b, strict=True)] for a, b in zip(before.sums, new, strict=True))
    )
    return _Pending(keys, both, before.draws + 1)


class _Images:
    """The images of a split on their way through their groups, of which this process runs those in `own`.

    Several processes divide the forward passes that one would run, with the same groups in each. What the groups of an
    image gave in different processes is brought together at the end and added in the order of one process, so that its
    maps are the very same.

    wanted: (n,) groups of each image in all processes.
    """

    def __init__(
        self, records: Sequence[Record], predicted: bool, wanted: NDArray[np.int64], own: Sequence[NDArray[np.int64]]
    ) -> None:
        self.records, self.predicted, self.wanted = records, predicted, wanted
        self.here = np.bincount(np.concatenate([np.empty(0, np.int64), *map(np.ravel, own)]), minlength=len(records))
        self.pending: dict[int, _Pending] = {}
        self.draws: dict[int, list[_Draw]] = {}

    def add(
        self,
        index: int,
        number: int,
        maps: _Readouts,
        logits: Tensor,
        place: tuple[int, ...],
        shape: tuple[int, int],
    ) -> Iterator[tuple[Record, CamSet]]:
        """Add what the group of `place` in pass `number` gave; the image, when that was its last group."""
        known = None if self.predicted else np.array(self.records[index].labels, dtype=np.int64)
        if self.here[index] < self.wanted[index]:
            alone = _add(None, maps, logits, place, np.arange(logits.shape[-1]) if known is None else known)
            self.draws.setdefault(index, []).append(_Draw(number, alone.sums, logits[place].clone(), shape))
            return
        self.pending[index] = _add(self.pending.get(index), maps, logits, place, known)
        if self.pending[index].draws == self.wanted[index]:
            yield self.records[index], _finish(self.pending.pop(index), shape)

    def divided(self) -> Iterator[tuple[Record, CamSet]]:
        """The images with groups in several processes, of which each finishes some; all have to come here."""
        indices = sorted({index for found in distributed.gather([*self.draws]) for index in found})
        shares = [indices[number :: distributed.size()] for number in range(distributed.size())]
        received = distributed.exchange([{i: self.draws[i] for i in each if i in self.draws} for each in shares])
        for index in shares[distributed.rank()]:
            draws = sorted((x for found in received for x in found.get(index, [])), key=lambda draw: draw.number)
            labels = np.array(self.records[index].labels, dtype=np.int64)
            done: _Pending | None = None
            for draw in draws:
                done = _add(done, draw.maps, draw.logits, (), None if self.predicted else np.arange(len(labels)))
            assert done is not None
            yield self.records[index], _finish(done if self.predicted else done._replace(keys=labels), draws[0].shape)


def _finish(done: _Pending, shape: tuple[int, int]) -> CamSet:
    """Maps at the image's shape (H, W), or at stride 4 where that is too large, normalised."""
    reduced = bounded_shape(shape, len(done.keys))
    initial, graph = (_normalised(readout, done.draws, reduced) for readout in done.sums)
    ensemble = (initial + graph) * np.float32(0.5)
    return CamSet(done.keys, initial, graph, ensemble, None if reduced == shape else (shape[0], shape[1]))


def bounded_shape(shape: tuple[int, int], classes: int) -> tuple[int, int]:
    """The (H, W) at which the maps of an image are made: its own, or at stride 4 past MAX_MAP_VALUES."""
    return shape if classes * shape[0] * shape[1] <= MAX_MAP_VALUES else strided_shape(shape)


def _normalised(scales: Sequence[Tensor], draws: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    if not len(scales[0]):
        return np.zeros((0, *shape), np.float32)
    total = torch.zeros(len(scales[0]), *shape)
    for maps in scales:
        total += interpolate(maps[None] / draws, shape, mode="bilinear", align_corners=False)[0]
    return (total / (total.amax((1, 2), keepdim=True) + EPSILON)).numpy()


def _predicted(logits: Tensor) -> Tensor:
    """Which of the classes (..., L) count as present: logit above 0, and always the largest."""
    present = logits > 0
    return present.scatter(-1, logits.argmax(-1, keepdim=True), True)


class _SquashedGroups(Dataset):
    """Item b: the images of the groups in `batches[b]` (B, K), a tensor (B, K, 3, s, s) a side, and their (H, W)."""

    def __init__(
        self, records: Sequence[Record], batches: Sequence[NDArray[np.int64]], transforms: Sequence[SquareTransform]
    ) -> None:
        self.records, self.batches, self.transforms = records, batches, transforms

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[list[Tensor], dict[tuple[int, ...], tuple[int, int]]]:
        batch = self.batches[number]
        views: list[list[Tensor]] = [[] for _ in self.transforms]
        shapes = {}
        for place in np.ndindex(batch.shape):
            record = self.records[int(batch[place])]
            with record.located():
                image = read_image(record.image)
            shapes[place] = (image.height, image.width)
            for transform, images in zip(self.transforms, views, strict=True):
                images.append(transform(image))
        return [torch.stack(images).unflatten(0, batch.shape) for images in views], shapes


def _load(
    records: Sequence[Record],
    batches: Sequence[NDArray[np.int64]],
    transforms: Sequence[SquareTransform],
    workers: int,
) -> Iterator[tuple[list[Tensor], dict[tuple[int, ...], tuple[int, int]]]]:
    dataset = _SquashedGroups(records, batches, transforms)
    return checked(make_loader(dataset, workers=workers, batch_size=None))


def _transforms(size: int, scales: Sequence[float]) -> list[SquareTransform]:
    return [SquareTransform(max(round(size * scale), 1)) for scale in scales]


def _check(scales: Sequence[float], size: int, rounds: int, groups: int, precision: str) -> None:
    if not scales or min(scales) <= 0 or size < 1:
        raise GwsssError(f"scales {list(scales)} and size {size} must be positive, with at least one scale")
    if rounds < 1 or groups < 1:
        raise GwsssError(f"rounds is {rounds} and groups {groups}; both must be at least 1")
    if precision not in PRECISIONS:
        raise GwsssError(f"precision is {precision!r}; use one of {', '.join(PRECISIONS)}")
