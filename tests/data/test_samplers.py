"""Group samplers against their definition, spelled out as loops over all images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gwsss_fast.data.samplers import GroupSampler, PhasedSampler
from gwsss_fast.errors import GwsssError

label_matrices = st.tuples(st.integers(4, 30), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
group_sizes = st.integers(1, 4)
seeds = st.integers(0, 1000)


def overlaps(labels: np.ndarray, anchor: int) -> np.ndarray:
    """Labels shared with the anchor, of every other image, in falling order."""
    shared = labels.astype(int) @ labels[anchor].astype(int)
    return np.sort(np.delete(shared, anchor))[::-1]


@settings(max_examples=60, deadline=None)
@given(labels=label_matrices, group_size=group_sizes, seed=seeds)
def test_greedy_shares_as_many_labels_as_possible(labels, group_size, seed):
    for group in GroupSampler(labels, group_size, "greedy", seed).epoch(0):
        shared = labels[group[1:]].astype(int) @ labels[group[0]].astype(int)
        np.testing.assert_array_equal(np.sort(shared)[::-1], overlaps(labels, group[0])[: group_size - 1])


@settings(max_examples=60, deadline=None)
@given(labels=label_matrices, group_size=group_sizes, seed=seeds)
def test_one_common_shares_one_label_when_it_can(labels, group_size, seed):
    for group in GroupSampler(labels, group_size, "one-common", seed).epoch(0):
        anchor = labels[group[0]].astype(bool)
        if (labels[:, anchor].sum(axis=0) >= group_size).any():
            assert labels[group].all(axis=0).any()
        else:
            shared = (labels[group[1:]] & labels[group[0]]).any(axis=1)
            assert shared.sum() == min(group_size - 1, (overlaps(labels, group[0]) > 0).sum())


@settings(max_examples=60, deadline=None)
@given(
    labels=label_matrices,
    group_size=group_sizes,
    seed=seeds,
    strategy=st.sampled_from(["greedy", "one-common", "random"]),
)
def test_epochs_and_covers_hold_every_image(labels, group_size, seed, strategy):
    sampler = GroupSampler(labels, group_size, strategy, seed)
    for groups in (sampler.epoch(3), sampler.cover(3)):
        assert groups.dtype == np.int64
        assert groups.shape[1] == group_size
        assert all(len(set(group)) == group_size for group in groups.tolist())
        assert set(groups.ravel()) == set(range(len(labels)))
    assert sorted(sampler.epoch(3)[:, 0]) == list(range(len(labels)))
    again = GroupSampler(labels, group_size, strategy, seed)
    again.epoch(0)  # what was drawn before must not matter
    np.testing.assert_array_equal(again.epoch(3), sampler.epoch(3))
    np.testing.assert_array_equal(again.cover(3), sampler.cover(3))


@settings(max_examples=40, deadline=None)
@given(labels=label_matrices, seed=seeds)
def test_cover_partners_follow_the_strategy(labels, seed):
    for group in GroupSampler(labels, 3, "greedy", seed).cover(0):
        shared = labels[group[1:]].astype(int) @ labels[group[0]].astype(int)
        np.testing.assert_array_equal(np.sort(shared)[::-1], overlaps(labels, group[0])[:2])


@pytest.mark.parametrize("strategy", ["greedy", "one-common", "random"])
def test_cover_repeats_nothing_it_need_not(strategy):
    labels = np.eye(4, dtype=np.uint8).repeat(8, axis=0)  # four classes of eight images: eight full groups
    groups = GroupSampler(labels, 4, strategy, 7).cover(0)
    assert sorted(groups.ravel()) == list(range(32))


def test_ties_are_drawn_uniformly():
    labels = np.array([[1, 1]] + [[1, 0]] * 3 + [[0, 1]] * 2 + [[0, 0]] * 4, np.uint8)
    sampler, rng = GroupSampler(labels, 2, "greedy"), np.random.default_rng(0)
    counts = np.bincount([sampler.partners(0, rng)[0] for _ in range(5000)], minlength=10)
    assert (counts[6:] == 0).all()
    np.testing.assert_allclose(counts[1:6], 1000, atol=120)  # four standard deviations


def test_pools_larger_than_a_few_groups_are_drawn_uniformly():
    labels = np.array([[1, 0]] + [[1, 0]] * 5 + [[1, 1]] * 20, np.uint8)
    sampler, rng = GroupSampler(labels, 4, "greedy"), np.random.default_rng(0)
    counts = np.bincount(np.concatenate([sampler.partners(0, rng) for _ in range(5000)]), minlength=26)
    np.testing.assert_allclose(counts[1:], 600, atol=100)


def test_epochs_and_seeds_differ():
    labels = np.random.default_rng(0).integers(0, 2, (50, 4))
    sampler = GroupSampler(labels, 4, "greedy", 0)
    assert (sampler.epoch(0) != sampler.epoch(1)).any()
    assert (sampler.epoch(0) != GroupSampler(labels, 4, "greedy", 1).epoch(0)).any()
    assert sampler.cover(0).tolist() != sampler.cover(1).tolist()


def test_a_rare_label_is_filled_up_at_random():
    labels = np.zeros((30, 2), np.uint8)
    labels[:2, 0] = 1
    labels[2:, 1] = 1
    for strategy in ("greedy", "one-common"):
        sampler = GroupSampler(labels, 4, strategy)
        drawn = {tuple(sampler.partners(0, np.random.default_rng(seed))) for seed in range(20)}
        assert all(1 in partners for partners in drawn)
        assert len(drawn) > 10


def test_work_for_a_group_does_not_grow_with_the_number_of_images(monkeypatch):
    """Eighty thousand images with eighty labels: ranks are made once a label set, never once an anchor."""
    rng = np.random.default_rng(0)
    label_sets = rng.random((300, 80)) < 0.03
    labels = label_sets[rng.integers(300, size=80_000)]
    sampler = GroupSampler(labels, 4, "greedy")
    ranked = []
    rank = sampler._rank
    monkeypatch.setattr(sampler, "_rank", lambda bucket: ranked.append(bucket) or rank(bucket))
    assert sampler.epoch(0).shape == (80_000, 4)
    assert len(ranked) == len(set(ranked)) <= 300


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (np.ones((3, 2)), (4, "greedy"), "3 images are too few for groups of 4"),
        (np.ones((0, 2)), (1, "random"), "0 images are too few"),
        (np.ones(3), (2, "greedy"), r"shape \(images, classes\)"),
        (np.ones((3, 2)), (0, "greedy"), "group size is 0"),
        (np.ones((3, 2)), (2, "gready"), "greedy, one-common, random"),
        (np.ones((3, 2)), (2, "greedy", -1), "must not be negative"),
    ],
)
def test_bad_arguments(labels, arguments, message):
    with pytest.raises(GwsssError, match=message):
        GroupSampler(labels, *arguments)


def test_a_phased_sampler_changes_its_strategy_after_so_many_epochs():
    labels = np.eye(4, dtype=np.uint8).repeat(5, 0)
    greedy = GroupSampler(labels, 3, "greedy", seed=2)
    phased = PhasedSampler(greedy, labels, 2)
    random = GroupSampler(labels, 3, "random", seed=2)
    assert len(phased) == 20
    for epoch in range(4):
        expected = random if epoch < 2 else greedy
        np.testing.assert_array_equal(phased.epoch(epoch), expected.epoch(epoch))


def test_a_phase_may_end_within_an_epoch():
    labels = np.eye(4, dtype=np.uint8).repeat(10, 0)
    greedy = GroupSampler(labels, 3, "greedy", seed=4)
    random, phased = GroupSampler(labels, 3, "random", seed=4), PhasedSampler(greedy, labels, 1, random_groups=15)
    assert np.array_equal(phased.epoch(0), random.epoch(0))
    assert np.array_equal(phased.epoch(1)[:15], random.epoch(1)[:15])
    assert np.array_equal(phased.epoch(1)[15:], greedy.epoch(1)[15:])
    assert np.array_equal(phased.epoch(2), greedy.epoch(2))
