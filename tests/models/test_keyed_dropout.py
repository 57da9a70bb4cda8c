"""Dropout by keys: what is dropped of a sample depends on its key, layer and size, on nothing else."""

import pytest
import torch
from torch import nn

from gwsss_fast.models.deeplab import LargeFovASPP
from gwsss_fast.models.keyed_dropout import KEYED, key_dropout, set_keys
from gwsss_fast.training.parts import keys_of_rows

LAYERS = [
    (nn.Dropout, (6, 5, 9, 8)),
    (nn.Dropout1d, (6, 50, 9)),
    (nn.Dropout2d, (6, 50, 3, 2)),
    (nn.Dropout3d, (6, 50, 2, 2, 2)),
]


def dropped(layer: nn.Module, x: torch.Tensor, rows: range, step: int = 0, items: int = 1) -> torch.Tensor:
    set_keys(key_dropout(layer), keys_of_rows(rows[::items], 7, step))
    return layer.train()(x[rows.start : rows.stop])


@pytest.mark.parametrize(("kind", "shape"), LAYERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_sample_loses_the_same_units_in_any_batch(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape) + 1
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    layer = nn.Sequential(kind(0.3))
    state = torch.get_rng_state()
    whole = dropped(layer, x, range(6))
    assert torch.equal(torch.get_rng_state(), state)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        assert torch.equal(dropped(layer, x, range(start, stop)), whole[start:stop])
    pairs = [dropped(layer, x, range(start, start + 2), items=2) for start in (0, 2, 4)]  # two samples an item
    assert torch.equal(torch.cat(pairs), dropped(layer, x, range(6), items=2))
    kept = whole != 0
    torch.testing.assert_close(whole[kept], (x / 0.7)[kept])
    others = [dropped(layer, x, range(6), step=1) != 0, pairs[0].new_ones(0)]
    assert not torch.equal(others[0], kept)
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal((pairs[0] != 0)[0], (pairs[0] != 0)[1])
    if kind is not nn.Dropout:  # whole channels
        assert (kept.flatten(2).all(2) | ~kept.flatten(2).any(2)).all()


def test_so_many_units_stay_and_every_layer_and_size_draws_anew() -> None:
    layers = nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.3))
    set_keys(key_dropout(layers), keys_of_rows(range(40), 0, 0))
    x = torch.ones(40, 2500)
    first, second = (layer(x) != 0 for layer in layers)
    smaller = layers[0](x[:, :2400]) != 0
    for kept in (first, second):  # 100,000 draws: six standard deviations are 0.009
        assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.009)
    for a, b in ((first, second), (first[:, :2400], smaller), (first[:-1], first[1:])):  # independent
        assert float((a & b).float().mean()) == pytest.approx(0.49, abs=0.01)


def test_without_keys_and_in_eval_it_is_pytorchs() -> None:
    plain, keyed = nn.Dropout(0.5), nn.Dropout(0.5)
    key_dropout(keyed)
    assert type(keyed) is KEYED[nn.Dropout]
    x = torch.randn(3, 7)
    torch.manual_seed(4)
    expected = plain(x)
    torch.manual_seed(4)
    assert torch.equal(keyed(x), expected)
    set_keys([keyed], keys_of_rows(range(3), 0, 0))  # type: ignore[list-item]
    assert torch.equal(keyed.eval()(x), x)


def test_gradients_and_torch_compile_of_the_head_of_vgg16() -> None:
    torch.manual_seed(0)
    head = LargeFovASPP(4, 3, rates=(1, 2))
    found = key_dropout(head)
    assert len(found) == 4
    set_keys(found, keys_of_rows([5, 2], 0, 3))
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    expected = head(x)
    expected.square().sum().backward()
    gradient, x.grad = x.grad, None
    torch._dynamo.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for keys in ([5, 2], [1, 0]):  # other keys are no reason to compile anew
        set_keys(found, keys_of_rows(keys, 0, 3))
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(compiled(x), head(x))
    set_keys(found, keys_of_rows([5, 2], 0, 3))
    compiled(x).square().sum().backward()
    torch.testing.assert_close(x.grad, gradient)
    torch._dynamo.reset()
