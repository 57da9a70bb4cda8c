"""Steps that go wrong, memory that runs out, checkpoints that are damaged, and signals."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gwsss_fast.config import TrainingConfig
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.checkpoint_folder import earlier_checkpoints, link
from gwsss_fast.training.checkpoints import load_checkpoint, save_weights
from gwsss_fast.training.guards import Skips, Statistics, out_of_memory
from gwsss_fast.training.parts import Part, Share
from gwsss_fast.training.profiling import Profile
from gwsss_fast.training.signals import Stop, Terminated, deferred_interrupt
from tests.training.test_loop import fit, make_trainer


def told() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


def test_a_skipped_step_changes_nothing_but_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, total=4)
    trainer.images = lambda share: [f"image_{row}" for row in share.rows]
    weights: dict[int, list[torch.Tensor]] = {}
    step = trainer._step

    def watched(*args: object) -> object:
        result = step(*args)  # type: ignore[arg-type]
        weights[trainer.step] = [p.detach().clone() for p in trainer.model.parameters()]
        weights[trainer.step] += [s["momentum_buffer"].clone() for s in trainer.optimizer.state.values()]
        return result

    trainer._step = watched  # type: ignore[method-assign, assignment]
    fit(trainer, nan_at=[1, 2])
    same = [all(map(torch.equal, weights[a], weights[a + 1])) for a in range(3)]
    assert same == [True, True, False]
    err = " ".join(capsys.readouterr().err.split())
    assert "toy: the loss is nan at step 2 (images image_0, image_1" in err
    assert "skipped, 2 of at most 10" in err
    assert load_checkpoint(tmp_path / "last.pt")["skipped"] == 2
    assert [row.split(",")[1] for row in (tmp_path / "toy.csv").read_text().splitlines()[2:4]] == ["", ""]


def test_after_the_limit_the_training_stops_and_names_the_images(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, options=TrainingConfig(nonfinite_limit=2))
    trainer.images = lambda share: ["cat_7", "dog_3"]
    with pytest.raises(GwsssError, match=r"nan at step 6 \(images cat_7, dog_3\), after 2 such steps were skipped"):
        fit(trainer, nan_at=[1, 3, 5])
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4  # the end of epoch 1


def test_a_gradient_that_overflows_is_skipped_though_its_loss_is_finite(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total=3)
    trainer.model[0].weight.register_hook(lambda g: g * (math.inf if trainer.step == 1 else 1))  # type: ignore[index, union-attr, operator]
    fit(trainer)
    assert trainer.skips.count == 1
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_many_names_are_cut_short() -> None:
    lines, tell = told()
    Skips("classifier", 1).note(3, math.inf, [f"i{n}" for n in range(20)], True, tell, "lower it")
    images = "images i0, i1, i2, i3, i4, i5, i6, i7 and 12 more"
    assert lines == [f"classifier: the loss is inf at step 3 ({images}): skipped, 1 of at most 1"]


def test_batch_norm_forgets_a_skipped_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = Statistics(model)
    model(torch.full((2, 3, 4, 4), math.nan))
    assert not model[1].running_mean.isfinite().all()  # type: ignore[union-attr, operator]
    kept.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_parts_of_a_batch_give_the_same_training(tmp_path: Path) -> None:
    whole, parts = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", options=TrainingConfig(accumulate=4))
    for trainer in (whole, parts):
        trainer.model[1].p = 0.0  # type: ignore[index, union-attr, assignment]
        trainer.rates = [0.01]
        fit(trainer)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_out_of_memory_divides_the_batch_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, total=3)
    fit(trainer, too_many=2)
    assert trainer.parts == 4  # 6 items: 1 part, 2 of 3, 4 of 2 or 1
    err = " ".join(capsys.readouterr().err.split())
    assert "out of memory at step 1; going on in 2 parts a step" in err
    with pytest.raises(GwsssError, match="out of memory with one item at a time; lower --groups"):
        fit(make_trainer(tmp_path / "none", total=3), too_many=0)


def test_the_words_of_libraries_without_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("anything"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


class Replayed(torch.autograd.Function):
    """A weight whose gradient is always written to the same memory, as by a CUDA graph."""

    memory = torch.zeros(4)

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        Replayed.memory.copy_(grad)
        return torch.empty(0).set_(Replayed.memory.untyped_storage()).view(4)  # type: ignore[call-overload]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_gradients_of_parts_outlive_the_replay_of_a_cuda_graph(cuda_graphs: bool, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, options=TrainingConfig(accumulate=3, cuda_graphs=cuda_graphs))
    trainer.model = nn.Module()
    trainer.model.weight = nn.Parameter(torch.ones(4))

    def loss(part: Part) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (Replayed.apply(trainer.model.weight) * part.items["x"].sum(0)).sum(), {}

    items = torch.arange(24.0).view(6, 4)
    share = Share({"x": items}, tuple(range(6)), 6)
    trainer._backward(share, loss, Profile(0, None, trainer.device, tmp_path, "toy"))
    assert torch.equal(trainer.model.weight.grad, items.sum(0)) == cuda_graphs  # type: ignore[arg-type]


def test_sigterm_saves_and_is_told_from_ctrl_c(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path)
    with pytest.raises(Terminated):
        fit(trainer, interrupt_at=2, kind=signal.SIGTERM)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_acts_at_once_and_a_second_sigterm_does_not() -> None:
    """A batch system may tell all processes of a job, torchrun among them, which tells its own once more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with deferred_interrupt() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.kind is Terminated
    with deferred_interrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("keep", "names"), [(1, []), (2, ["step-00000009.pt"]), (9, ["step-00000003.pt"])])
def test_as_many_checkpoints_stay_as_wanted(keep: int, names: list[str], tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, checkpoint_every=3, options=TrainingConfig(keep=keep)))  # epochs end at 4 and 8
    found = [path.name for path in earlier_checkpoints(tmp_path / "last.pt")]
    assert found[-1:] == names
    assert len(found) == min(keep - 1, 5)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 10
    for path in earlier_checkpoints(tmp_path / "last.pt"):
        assert load_checkpoint(path)["step"] == int(path.stem[5:])
    losses = [float(row.split(",")[1]) for row in (tmp_path / "toy.csv").read_text().splitlines()[1:]]
    means = [sum(losses[:4]) / 4, sum(losses[4:8]) / 4]
    assert load_checkpoint(tmp_path / "best.pt")["step"] == (4 if means[0] < means[1] else 8)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = make_trainer(tmp_path / "whole")
    fit(whole)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fit(make_trainer(folder, checkpoint_every=3), interrupt_at=6)
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: len(content) // 2])
    resumed = make_trainer(folder)
    resumed.resume()
    assert resumed.step == 6
    err = " ".join(capsys.readouterr().err.split())
    assert "last.pt is damaged and now last.pt.damaged; going on from step-00000006.pt" in err
    fit(resumed)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (folder / "last.pt.damaged").is_file()
    for path in folder.glob("*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(GwsssError, match=r"last\.pt is damaged"):
        make_trainer(folder).resume()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, interrupt_at=2)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        trainer.step += 1
        with pytest.raises(GwsssError, match="No space left on device; free space"):
            trainer.save()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert make_trainer(tmp_path).resume()["step"] == 3


def test_the_only_good_checkpoint_outlives_a_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(make_trainer(tmp_path, checkpoint_every=3), interrupt_at=6)
    flipped = bytearray((tmp_path / "last.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "last.pt").write_bytes(flipped)
    trainer = make_trainer(tmp_path)
    assert trainer.resume()["step"] == 6
    trainer.step += 1
    monkeypatch.setattr(torch, "save", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(GwsssError, match="No space left"):
        trainer.save()
    assert make_trainer(tmp_path).resume()["step"] == 6


def test_what_a_kill_left_unfinished_is_removed(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, total=2))
    for name in (".last.abc.pt", ".step-00000001.xyz.pt", ".best.q.pt", ".weights.q.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    fit(make_trainer(tmp_path, total=2))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_linking_a_file_to_its_own_second_name_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"content")
    for _ in range(2):
        link(tmp_path / "last.pt", tmp_path / "step-00000001.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "step-00000001.pt"]


def test_a_signal_during_the_last_save_is_heeded(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total=3)
    save = trainer.save

    def signalled(complete: bool = False) -> None:
        if complete:
            signal.raise_signal(signal.SIGTERM)
        save(complete)

    trainer.save = signalled  # type: ignore[method-assign]
    with pytest.raises(Terminated):
        fit(trainer)
    assert load_checkpoint(tmp_path / "last.pt")["complete"]


def test_what_has_come_to_one_process_is_what_all_raise() -> None:
    first, second = Stop(), Stop()
    second.kind = Terminated
    second.set()
    assert first.take([a + b for a, b in zip(first.flags(), second.flags(), strict=True)])
    assert first.kind is Terminated
    assert not Stop().take(Stop().flags())


@pytest.mark.parametrize(
    "change",
    [{"optimizer": 3}, {"step": None}, {"random": {}}, {"epoch_so_far": 1}, {"model": {"0.weight": 3}}],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_that_is_whole_and_wrong_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, total=2))
    torch.save({**load_checkpoint(tmp_path / "last.pt"), **change}, tmp_path / "last.pt")
    with pytest.raises(GwsssError, match=r"cannot be continued|no tensor|lacks"):
        make_trainer(tmp_path).resume()


def test_the_options_of_today_choose_the_optimisers_kernel(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, total=2))
    trainer = make_trainer(tmp_path)
    trainer.optimizer.param_groups[0]["fused"] = True
    trainer.resume()
    assert trainer.optimizer.param_groups[0]["fused"] is True


def test_a_full_disk_at_the_last_file_is_one_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(GwsssError, match=r"cannot write .*weights.safetensors.*free space"):
            save_weights(tmp_path / "weights.safetensors", nn.Linear(1000, 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_single_gradients_that_overflow_in_fp16_are_no_fault_but_their_norm_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "sought", total=3, precision="fp16")
    trainer.model[0].weight.register_hook(lambda g: g * math.inf)  # type: ignore[index, union-attr, operator]
    fit(trainer)
    assert trainer.skips.count == 0
    monkeypatch.setattr(nn.utils, "get_total_norm", lambda gradients: torch.tensor(math.inf))
    trainer = make_trainer(tmp_path / "fault", total=3, precision="fp16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)  # at which nothing overflows
    fit(trainer)
    assert trainer.skips.count == 3
