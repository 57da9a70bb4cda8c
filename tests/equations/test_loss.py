"""Eq. 13: the three terms, the edge targets, the weights and both reductions."""

from typing import Any

import numpy as np
import pytest
import torch
from loop_agreement import compare_gradients, numeric_gradient
from loops import group_loss

import gwsss_fast
from gwsss_fast import GroupOutput

WEIGHTS = (0.7, 0.1, 0.2)
ROUNDING = 1e-10


def draw(groups: int, nodes: int, classes: int, seed: int = 40) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(groups, nodes, classes), (groups, nodes, classes), (groups, nodes, nodes, classes)]
    labels = (rng.random((groups, nodes, classes)) < 0.5).astype(np.float64)
    return [2 * rng.normal(size=shape) for shape in shapes], labels


def package_loss(logits: list[torch.Tensor | None], labels: np.ndarray, **options: Any) -> torch.Tensor:
    final, initial, edge = logits
    assert final is not None
    assert initial is not None
    maps = torch.zeros(*final.shape, 2, 3, dtype=final.dtype)
    out = GroupOutput(final, initial, edge, maps, maps, maps)
    return gwsss_fast.group_loss(out, torch.from_numpy(labels), **options)


def as_tensors(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 2)], ids=str)
def test_group_loss(shape: tuple[int, int, int], weights: tuple[float, float, float], reduction: str) -> None:
    arrays, labels = draw(*shape)
    tensors = as_tensors(arrays)
    actual = package_loss([*tensors], labels, weights=weights, reduction=reduction)
    assert actual.shape == ()

    def loop(final: np.ndarray, initial: np.ndarray, edge: np.ndarray) -> np.ndarray:
        return np.array(group_loss(final, initial, edge, labels, weights, reduction))

    np.testing.assert_allclose(actual.item(), loop(*arrays), rtol=ROUNDING)
    numeric = [numeric_gradient(loop, arrays, which, [np.array(1.0)]) for which in range(3)]
    compare_gradients(torch.autograd.grad(actual, tensors), numeric, rtol=1e-6, atol=1e-7)


def test_weights_of_the_paper_and_means_are_the_default() -> None:
    arrays, labels = draw(2, 3, 4)
    actual = package_loss([torch.from_numpy(x) for x in arrays], labels)
    expected = group_loss(arrays[0], arrays[1], arrays[2], labels, WEIGHTS)
    np.testing.assert_allclose(actual.item(), expected, rtol=ROUNDING)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_edge_logits_the_other_terms_stay_as_they_are(reduction: str) -> None:
    arrays, labels = draw(2, 3, 4)
    actual = package_loss([*(torch.from_numpy(x) for x in arrays[:2]), None], labels, reduction=reduction)
    expected = group_loss(arrays[0], arrays[1], None, labels, WEIGHTS, reduction)
    np.testing.assert_allclose(actual.item(), expected, rtol=ROUNDING)


def test_edges_are_supervised_by_the_shared_classes_only() -> None:
    """Saturated logits that agree with l_i AND l_j cost nothing; with OR they would."""
    labels = np.array([[[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    shared = labels[:, :, None] * labels[:, None, :]
    zero = torch.zeros(1, 3, 3, dtype=torch.float64)
    edges = torch.from_numpy(200 * shared - 100)
    assert package_loss([zero, zero, edges], labels, weights=(0.0, 0.0, 1.0)).item() < 1e-12


def test_loss_of_large_logits_is_finite() -> None:
    arrays, labels = draw(1, 2, 3)
    tensors = as_tensors([500 * x for x in arrays])
    loss = package_loss([*tensors], labels)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, tensors))
