"""Which images learn together: groups of K images drawn by shared labels (paper, section VI-A3).

Images with the same label set lie in one bucket. A strategy turns an anchor into pools, lists of buckets in falling
order of preference, and partners are drawn from the first pool until it is empty, then from the next. No draw looks
at every image, which keeps 80,000 images with 80 labels cheap.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from gwsss_fast.errors import GwsssError

Strategy = Literal["greedy", "one-common", "random"]

_EPOCH, _COVER = 0, 1  # keeps the random streams of epochs and covers apart


class _Pool(NamedTuple):
    """Buckets that are equally good for an anchor."""

    buckets: np.ndarray  # (m,) bucket numbers
    ends: np.ndarray  # (m,) running total of the bucket sizes
    total: int  # images in all of them


class PhasedSampler:
    """Random groups in the first `random_epochs` epochs and the first `random_groups` of the next, then by `sampler`.

    A network that starts from random weights learns slowly from batches whose images all show the same classes.
    """

    def __init__(self, sampler: GroupSampler, labels: np.ndarray, random_epochs: int, random_groups: int = 0) -> None:
        self.sampler, self.random_epochs, self.random_groups = sampler, random_epochs, random_groups
        self.random = GroupSampler(labels, sampler.group_size, "random", sampler.seed)

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int) -> np.ndarray:
        """Groups (n, K) int64 of one epoch."""
        if epoch < self.random_epochs:
            return self.random.epoch(epoch)
        groups = self.sampler.epoch(epoch)
        if epoch == self.random_epochs and self.random_groups:
            groups[: self.random_groups] = self.random.epoch(epoch)[: self.random_groups]
        return groups


class GroupSampler:
    """Draws groups of `group_size` distinct images from multi-hot `labels` (n, L).

    Strategies: `greedy` takes the partners that share the most labels with the anchor, ties at random; `one-common`
    picks one of the anchor's labels at random and partners that carry it; `random` takes any. When too few images
    share a label with the anchor the rest of the group is drawn at random.

    Raises GwsssError for an unknown strategy, a group size below 1, labels that are not two-dimensional, or fewer
    images than a group holds.
    """

    def __init__(self, labels: np.ndarray, group_size: int, strategy: Strategy = "greedy", seed: int = 0) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 2:
            raise GwsssError(f"labels must have shape (images, classes), got {labels.shape}")
        if strategy not in get_args(Strategy):
            raise GwsssError(f"unknown sampling strategy {strategy!r}; choose one of {', '.join(get_args(Strategy))}")
        if group_size < 1:
            raise GwsssError(f"a group needs at least one image, group size is {group_size}")
        if len(labels) < group_size:
            raise GwsssError(f"{len(labels)} images are too few for groups of {group_size}; lower the group size")
        if seed < 0:
            raise GwsssError(f"the seed must not be negative, got {seed}")
        self.group_size, self.strategy, self.seed = group_size, strategy, seed
        self._index(labels != 0)

    def __len__(self) -> int:
        """Number of images, which is the number of groups in an epoch."""
        return len(self._bucket_of)

    def epoch(self, epoch: int) -> np.ndarray:
        """Groups (n, K) int64 of one epoch: every image is the anchor, column 0, of exactly one; order shuffled.

        The same (seed, epoch) gives the same groups.
        """
        rng = np.random.default_rng([self.seed, _EPOCH, epoch])
        groups = np.empty((len(self), self.group_size), np.int64)
        groups[:, 0] = rng.permutation(len(self))
        for row in groups:
            row[1:] = self.partners(int(row[0]), rng)
        return groups

    def partners(self, anchor: int, rng: np.random.Generator) -> np.ndarray:
        """K - 1 distinct images (int64) to learn with `anchor`, never `anchor` itself."""
        chosen = [anchor]
        for pool in self._pools(anchor, rng):
            self._draw(pool, chosen, rng)
            if len(chosen) == self.group_size:
                break
        return np.array(chosen[1:], np.int64)

    def cover(self, round: int) -> np.ndarray:
        """Groups (m, K) int64 in which every image appears at least once, with few repeats.

        Anchors are images not yet covered; their partners follow the strategy, and among equally good ones those not
        yet covered come first. The same (seed, round) gives the same groups.
        """
        rng = np.random.default_rng([self.seed, _COVER, round])
        left = _Uncovered(self._starts, self._sizes, self._members, rng)
        groups = []
        for anchor in rng.permutation(len(self)).tolist():
            if left.covered[anchor]:
                continue
            left.remove(anchor, int(self._bucket_of[anchor]))
            chosen = [anchor]
            for pool in self._pools(anchor, rng):
                left.draw(pool.buckets, chosen, self.group_size, rng)
                self._draw(pool, chosen, rng)
                if len(chosen) == self.group_size:
                    break
            groups.append(chosen)
        return np.array(groups, np.int64)

    def _index(self, labels: np.ndarray) -> None:
        """Sort the images into buckets of identical label sets and list the buckets that carry each label."""
        packed = np.ascontiguousarray(np.packbits(labels, axis=1))
        keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel() if packed.shape[1] else np.zeros(len(packed))
        _, first, bucket_of, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        self._bucket_of = bucket_of.ravel()
        self._sizes = sizes
        self._members = np.argsort(self._bucket_of, kind="stable")
        self._starts = np.cumsum(sizes) - sizes
        label_sets = labels[first]
        self._labels_of = [np.flatnonzero(row) for row in label_sets]
        self._carriers = [np.flatnonzero(column) for column in label_sets.T]
        self._everything = self._pool(np.arange(len(sizes)))
        self._by_label = [self._pool(buckets) for buckets in self._carriers]
        self._by_overlap: dict[int, list[_Pool]] = {}

    def _pool(self, buckets: np.ndarray) -> _Pool:
        ends = np.cumsum(self._sizes[buckets])
        return _Pool(buckets, ends, int(ends[-1]) if len(ends) else 0)

    def _pools(self, anchor: int, rng: np.random.Generator) -> list[_Pool]:
        """Pools in falling order of preference; the last one is every image, so a group can always be filled."""
        bucket = int(self._bucket_of[anchor])
        if self.strategy == "greedy":
            if bucket not in self._by_overlap:
                self._by_overlap[bucket] = self._rank(bucket)
            return self._by_overlap[bucket]
        if self.strategy == "one-common" and len(self._labels_of[bucket]):
            # A label that fills the group alone goes first: then all K images share it.
            pools = [self._by_label[label] for label in rng.permutation(self._labels_of[bucket])]
            pools.sort(key=lambda pool: pool.total < self.group_size)
            return [*pools, self._everything]
        return [self._everything]

    def _rank(self, bucket: int) -> list[_Pool]:
        """Pools of falling overlap with the label set of `bucket`, no more of them than a group can need."""
        labels = self._labels_of[bucket]
        pools, found = [], 0
        if len(labels):
            shared = np.bincount(np.concatenate([self._carriers[label] for label in labels]))
            for overlap in range(len(labels), 0, -1):
                pool = self._pool(np.flatnonzero(shared == overlap))
                found += pool.total
                if pool.total:
                    pools.append(pool)
                if found >= self.group_size:  # the anchor itself is one of those found
                    return pools
        return [*pools, self._everything]

    def _draw(self, pool: _Pool, chosen: list[int], rng: np.random.Generator) -> None:
        """Append images of `pool` to `chosen`, at random and without repeats, until the group or the pool is full."""
        need = self.group_size - len(chosen)
        if need <= 0:
            return
        if pool.total <= 2 * self.group_size:  # few: shuffle them all, since rejection could go on for ever
            candidates = self._image(pool, rng.permutation(pool.total))
            chosen += [image for image in candidates.tolist() if image not in chosen][:need]
            return
        while need:
            for image in self._image(pool, rng.integers(pool.total, size=need)).tolist():
                if image not in chosen:
                    chosen.append(image)
                    need -= 1

    def _image(self, pool: _Pool, position: np.ndarray) -> np.ndarray:
        """The images at `position` in 0..total-1 of the pool."""
        at = np.searchsorted(pool.ends, position, side="right")
        bucket = pool.buckets[at]
        return self._members[self._starts[bucket] + position - (pool.ends[at] - self._sizes[bucket])]


class _Uncovered:
    """The images of each bucket that have not been in a group yet."""

    def __init__(self, starts: np.ndarray, sizes: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> None:
        # Shuffled inside each bucket, so that taking the last one left is a random choice.
        bucket = np.repeat(np.arange(len(sizes)), sizes)
        order = members[np.lexsort((rng.random(len(members)), bucket))].tolist()
        self._left = [order[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
        self._count = sizes.copy()
        self.covered = np.zeros(len(members), bool)

    def remove(self, image: int, bucket: int) -> None:
        self.covered[image] = True
        self._count[bucket] -= 1

    def draw(self, buckets: np.ndarray, chosen: list[int], group_size: int, rng: np.random.Generator) -> None:
        """Append uncovered images of `buckets` to `chosen` until the group is full or none is left."""
        ends = np.cumsum(self._count[buckets])
        total = int(ends[-1]) if len(ends) else 0
        take = min(group_size - len(chosen), total)
        if take <= 0:
            return
        for position in rng.choice(total, size=take, replace=False, shuffle=False):
            bucket = int(buckets[np.searchsorted(ends, position, side="right")])
            left = self._left[bucket]
            while self.covered[left[-1]]:  # anchors leave their bucket from the middle
                left.pop()
            image = left.pop()
            self.remove(image, bucket)
            chosen.append(image)
