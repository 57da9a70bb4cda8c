"""The training loop: interruption at any step changes nothing, and nonsense stops it."""

import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gwsss_fast.config import TrainingConfig
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.loop import Trainer
from gwsss_fast.training.parts import Part, Share
from gwsss_fast.training.schedules import constant, poly, step_decay, warm_up


def make_trainer(folder: Path, total: int = 10, **options: Any) -> Trainer:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Trainer(
        "toy", model, optimizer, poly(total, 0.9), total, 4, folder / "last.pt", folder, torch.device("cpu"), **options
    )


def batches(start: int) -> Iterator[Share]:
    for step in range(start, 1000):
        yield Share({"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(step))}, tuple(range(6)), 6)


def fit(
    trainer: Trainer,
    interrupt_at: int | None = None,
    nan_at: Collection[int] = (),
    kind: signal.Signals = signal.SIGINT,
    too_many: int = 100,
) -> None:
    def loss(part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        batch = part.items["x"]
        if trainer.step == interrupt_at:
            signal.raise_signal(kind)
        if len(batch) > too_many:
            raise torch.OutOfMemoryError("no memory for so many")
        value = (trainer.network(batch) - batch.sum(1, keepdim=True)).square().mean() * part.weight
        return (value * float("nan") if trainer.step in nan_at else value), {}

    trainer.fit(batches, loss)


@pytest.mark.parametrize("stop", [0, 1, 3, 6, 9])
def test_an_interrupted_training_ends_with_the_same_weights(stop: int, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    fit(whole)
    broken = make_trainer(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, interrupt_at=stop)
    assert load_checkpoint(tmp_path / "broken" / "last.pt")["step"] == stop + 1
    torch.manual_seed(999)
    resumed = make_trainer(tmp_path / "broken")
    torch.manual_seed(1234)  # whatever happened in between
    resumed.resume()
    fit(resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    content = load_checkpoint(tmp_path / "broken" / "last.pt")
    assert content["complete"]
    assert (content["step"], content["epoch"], content["position"]) == (10, 2, 2)
    rows = (tmp_path / "broken" / "toy.csv").read_text().splitlines()
    assert rows == (tmp_path / "whole" / "toy.csv").read_text().splitlines()


def test_a_crash_between_checkpoints_goes_back_to_the_last_one(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    fit(whole)
    crashed = make_trainer(tmp_path / "crashed", checkpoint_every=3, options=TrainingConfig(nonfinite_limit=0))
    with pytest.raises(GwsssError, match=r"toy: the loss is nan at step 9.*last\.pt"):
        fit(crashed, nan_at=[8])
    assert load_checkpoint(tmp_path / "crashed" / "last.pt")["step"] == 8  # the end of epoch 2
    resumed = make_trainer(tmp_path / "crashed")
    resumed.resume()
    fit(resumed)
    assert torch.equal(whole.model[0].weight, resumed.model[0].weight)  # type: ignore[index]
    rows = (tmp_path / "crashed" / "toy.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(1, 11))]


def test_ctrl_c_handling_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(make_trainer(tmp_path), interrupt_at=2)
    assert signal.getsignal(signal.SIGINT) is before


def test_weights_that_blow_up_are_not_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model[0].weight.fill_(float("inf"))  # type: ignore[index, operator]
    with pytest.raises(GwsssError, match="not finite"):
        trainer.save()
    assert not (tmp_path / "last.pt").exists()


def test_learning_rates_follow_the_schedule_and_are_logged(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path))
    rows = [row.split(",") for row in (tmp_path / "toy.csv").read_text().splitlines()]
    assert rows[0] == ["step", "loss", "lr_0"]
    for step, row in enumerate(rows[1:]):
        assert float(row[2]) == pytest.approx(0.1 * (1 - step / 10) ** 0.9, rel=1e-5)


def test_schedules() -> None:
    step = step_decay(5, 0.1)
    assert [step(n) for n in (0, 4, 5, 9, 10)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert poly(100, 0.9)(50) == pytest.approx(0.5**0.9)
    assert poly(100, 0.9)(120) == 0
    warm = warm_up(constant(), 4)
    assert [warm(n) for n in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warm_up(constant(), 0)(0) == 1


def test_a_checkpoint_without_an_optimiser_cannot_be_continued(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    torch.save({"model": trainer.model.state_dict()}, tmp_path / "last.pt")
    with pytest.raises(GwsssError, match="cannot be continued"):
        trainer.resume()
