"""Training by several processes: their number changes nothing but rounding, and none can vanish unnoticed."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gwsss_fast import distributed, train
from gwsss_fast.data.dataset import Record, Split
from gwsss_fast.data.embedded import build_embedded
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupOutput
from gwsss_fast.models.base import Backbone
from gwsss_fast.models.synced_batch_norm import synchronise_batch_norm
from gwsss_fast.training import loop
from gwsss_fast.training.batches import watch_bad_images
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.classifier import train_classifier
from gwsss_fast.training.online_maps import OnlineMaps
from gwsss_fast.training.segmenter import train_segmenter
from tests.command_line import FAST, STAGES, metrics
from tests.conftest import draw_voc
from tests.ranks import launch_function, output, start_ranks, statuses, together
from tests.training.test_stages import make_run, with_pseudo_labels

STEPS = 20
ROOT = Path(__file__).resolve().parents[2]
# 10 images in groups of 4: steps of 4, 4 and 2 groups, the last one with less than a group for each of 4 processes.
UNEVEN = """
model: {backbone: "tests.training.test_ranks:normed", weights: none, steps: 1}
classifier: {epochs: 7, groups: 4, plain_epochs: 2, frozen_batch_norm: "no", warmup_steps: 0}
segmenter: {init: source, weights: none, iterations: 20, batch: 5, frozen_batch_norm: "no"}
max_steps: 20
"""


class Normed(Backbone):
    """A backbone whose batch norm is trained, and which drops units and channels."""

    out_channels = 32
    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 5, 4, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.Dropout2d(0.2)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).relu()


def normed(**options: Any) -> Normed:
    return Normed()


def dropping(**options: Any) -> Normed:
    """The same without batch norm."""
    backbone = Normed()
    backbone.layers = nn.Sequential(*(x for x in backbone.layers if not isinstance(x, nn.BatchNorm2d)))
    return backbone


# No batch norm, whose statistics depend on the parts.
IN_PARTS = """
model: {backbone: "tests.training.test_ranks:dropping", weights: none, steps: 1}
classifier: {epochs: 2, groups: 3, plain_epochs: 0}
segmenter: {init: source, weights: none, iterations: 4, batch: 3}
max_steps: 4
"""


def both_stages(data: Path, folder: Path, text: str) -> None:
    run = make_run(folder, data, text)
    train_classifier(run)
    train_segmenter(run, run.data.training)


def losses(folder: Path, stage: str) -> list[float]:
    with (folder / "logs" / f"{stage}.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_voc(tmp_path_factory.mktemp("ten") / "data", train=10, val=2)


def test_one_two_and_four_processes_have_the_same_losses(ten: Path, tmp_path: Path) -> None:
    for count in (1, 2, 4):
        with_pseudo_labels(make_run(tmp_path / str(count), ten))
        launch_function(count, both_stages, (ten, tmp_path / str(count), UNEVEN), tmp_path / f"logs-{count}")
    for stage in ("classifier", "segmenter"):
        whole = losses(tmp_path / "1", stage)
        assert len(whole) == STEPS
        assert len(set(whole)) > STEPS / 2
        for count in (2, 4):
            assert losses(tmp_path / str(count), stage) == pytest.approx(whole, abs=1e-5), (stage, count)


def test_parts_of_unequal_shares_have_the_same_losses(ten: Path, tmp_path: Path) -> None:
    """Of three items one process has two and the other one, which cannot be divided further."""
    for name, count, text in (("whole", 1, IN_PARTS), ("parts", 2, IN_PARTS + "training: {accumulate: 2}")):
        with_pseudo_labels(make_run(tmp_path / name, ten))
        launch_function(count, both_stages, (ten, tmp_path / name, text), tmp_path / f"logs-{name}")
    for stage in ("classifier", "segmenter"):
        assert losses(tmp_path / "parts", stage) == pytest.approx(losses(tmp_path / "whole", stage), abs=1e-5), stage


def meet_bad_images(data: Path, folder: Path) -> None:
    """Process r meets images r and r + 2, both meet image 5: five in all, in each of two trainings."""
    for stage, limit in (("classifier", 5), ("segmenter", 4)):
        run = make_run(folder, data, f"data: {{on_bad_image: skip, bad_image_limit: {limit}}}")
        tally = watch_bad_images(run, run.data.training, stage)
        assert tally is not None
        problem = ""
        for index in (5, distributed.rank(), distributed.rank() + 2):
            tally.note({"replaced": torch.tensor([index, -1])})
            try:
                tally.check()
            except GwsssError as error:
                problem = str(error)
            distributed.wait()
        problems = sorted(distributed.gather(problem))
        assert max(distributed.gather(len(tally.found))) == 5
        assert problems[0] == ""  # one speaks for all
        assert problems[1].startswith("5 images cannot be read, more than data.bad_image_limit = 4: image_005, ") == (
            limit == 4
        )


def test_bad_images_are_counted_over_all_processes(ten: Path, tmp_path: Path) -> None:
    launch_function(2, meet_bad_images, (ten, tmp_path / "run"), tmp_path / "logs")
    told = (tmp_path / "run/logs/bad_images.txt").read_text()
    for limit in (4, 5):
        assert [told.count(f"({number} of at most {limit})") for number in range(1, 7)] == [1, 1, 1, 1, 1, 0]


def batch_norm(kind: type[nn.Module], shape: tuple[int, ...], cuts: tuple[int, ...], joined: bool) -> None:
    """Values, gradients and statistics of this process's rows, against the whole batch by PyTorch's layer."""
    torch.manual_seed(0)
    whole = nn.Sequential(kind(shape[1]), nn.Tanh(), kind(shape[1], affine=False, momentum=None)).double()
    with torch.no_grad():
        whole[0].weight.uniform_(0.5, 2)
        whole[0].bias.uniform_(-1, 1)
        whole[0].running_mean.uniform_(-1, 1)
    own = nn.Sequential(kind(shape[1]), nn.Tanh(), kind(shape[1], affine=False, momentum=None))
    own.load_state_dict(whole.state_dict())
    assert synchronise_batch_norm(own) == (2, set())
    network = DistributedDataParallel(own) if joined else own
    for step in range(2):
        x = (torch.randn(shape) * 3 + 5).requires_grad_()
        weight = torch.randn(shape)
        expected_x = x.detach().double().requires_grad_()
        whole.zero_grad()
        expected = whole(expected_x)
        (expected * weight.double()).sum().backward()
        rows = slice(cuts[distributed.rank()], cuts[distributed.rank() + 1])
        mine = x.detach()[rows].clone().requires_grad_()
        own.zero_grad()
        found = network(mine)
        (found * weight[rows]).sum().backward()
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found.double(), expected[rows], **near)
        torch.testing.assert_close(mine.grad.double(), expected_x.grad[rows], **near)  # type: ignore[union-attr]
        for (name, wanted), value in zip(whole.named_parameters(), own.parameters(), strict=True):
            assert value.grad is not None
            assert wanted.grad is not None
            # DistributedDataParallel has taken the mean, a process alone has its own part of the sum.
            gradient = value.grad * distributed.size() if joined else distributed.add(value.grad)
            torch.testing.assert_close(gradient.double(), wanted.grad, msg=f"{name}, step {step}", **near)
        for name, wanted in whole.named_buffers():
            torch.testing.assert_close(own.get_buffer(name).double(), wanted.double(), msg=name, **near)
    whole.eval()
    own.eval()
    x = torch.randn(shape)
    torch.testing.assert_close(own(x).double(), whole(x.double()), **near)


def batch_norms() -> None:
    for joined in (False, True):
        batch_norm(nn.BatchNorm2d, (5, 3, 4, 6), (0, 1, 5), joined)
        batch_norm(nn.BatchNorm1d, (7, 4), (0, 5, 7), joined)


def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Over two processes with unequal shares, by themselves and joined by DistributedDataParallel."""
    launch_function(2, batch_norms, (), tmp_path)


def online_maps() -> None:
    """Process r sees image r + 1 alone, and all see image 0."""
    records = tuple(Record(str(number), Path("x.jpg"), labels=(1, 0)[:number]) for number in range(3))
    maps = OnlineMaps(Split("train", ("a", "b"), records))
    none, own = torch.zeros(0), distributed.rank() + 1
    raw = torch.eye(3).expand(1, 2, 2, 3, 3) * torch.tensor([1.0, own]).view(2, 1, 1)
    maps.update(GroupOutput(none, none, None, raw, raw, none), torch.tensor([[0, own]]))
    found = maps.state()["online_maps"]
    if not distributed.is_main():
        assert not found, "only process 0 writes"
        return
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "0": (2, 0, 3, 3),
        "1": (2, 1, 3, 3),
        "2": (2, 2, 3, 3),
    }
    assert torch.equal(found["2"], torch.eye(3).half().expand(2, 2, 3, 3))


def test_online_maps_of_all_processes_go_to_process_0(tmp_path: Path) -> None:
    launch_function(2, online_maps, (), tmp_path)


def short(data: Path, folder: Path, *more: str) -> list[str]:
    every = ["--classifier.checkpoint-every", "1", "--segmenter.checkpoint-every", "1", "--threads", "1"]
    return ["--data", str(data), "--output", str(folder), *FAST, *every, *more]


def deadly(arguments: list[str], stage: str, step: int, who: int) -> None:
    """`train`, whose process `who` kills itself in a step of `stage`, but not again when the job is restarted."""
    whole = loop.Trainer._step

    def fatal(self: loop.Trainer, *more: Any) -> Any:
        if (self.name, self.step) == (stage, step) and int(os.environ["RANK"]) == who and not distributed.restarted():
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *more)

    loop.Trainer._step = fatal  # type: ignore[method-assign]
    sys.exit(train.main(arguments))


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    content = load_checkpoint(folder / stage / "last.pt")
    assert content["complete"]
    return content["model"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run): every stage by two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = build_embedded(folder, train=10, val=3, size=64)
    together(2, ["train", *short(data, folder / "run")], folder / "logs")
    return data, folder / "run"


def test_torchrun_restarts_a_job_whose_process_was_killed(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = undisturbed
    script = tmp_path / "deadly.py"
    script.write_text(
        "import sys\nfrom tests.training.test_ranks import deadly\ndeadly(sys.argv[1:], 'classifier', 2, 1)"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--max-restarts", "1", str(script), *short(data, tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert set(STAGES) <= set(metrics(tmp_path / "run")["seconds"])
    assert "error: another process of the job has died" in done.stderr
    assert done.stdout.count("results") == 1
    for stage in ("classifier", "segmenter"):
        expected, found = weights(whole, stage), weights(tmp_path / "run", stage)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (stage, name)
    assert metrics(tmp_path / "run")["segmentation"] == metrics(whole)["segmentation"]


def test_two_torchruns_that_meet_at_an_address_are_one_job(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """As on two machines, but for the network between them."""
    data, whole = undisturbed
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}", "--rdzv-id=mine"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting]
    command += ["-m", "gwsss_fast.train", *short(data, tmp_path / "run", "--stage", "classifier")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(2)
    ]
    texts = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert sum("run: " in text for text in texts) == 1, texts
    for name, value in weights(whole, "classifier").items():
        assert torch.equal(value, weights(tmp_path / "run", "classifier")[name]), name


def test_after_a_kill_another_number_of_processes_goes_on(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = undisturbed
    arguments = short(data, tmp_path / "run", "--stage", "classifier")
    found = statuses(start_ranks(2, deadly, (arguments, "classifier", 2, 0), tmp_path / "logs"))
    assert found == [-signal.SIGKILL, 2], output(tmp_path / "logs")
    errors = [line for line in output(tmp_path / "logs").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output(tmp_path / "logs")
    assert "continue with --resume" in errors[0]
    assert "Traceback" not in output(tmp_path / "logs")
    text = together(3, ["train", *arguments, "--resume"], tmp_path / "logs")
    assert text.count("goes on with 3 processes where 2 began") == 1
    for name, value in weights(whole, "classifier").items():
        torch.testing.assert_close(weights(tmp_path / "run", "classifier")[name], value, rtol=1e-4, atol=1e-5)
