"""Both stages on a small data set: an interruption in the middle of an epoch leaves no trace in the weights."""

import csv
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gwsss_fast import cli
from gwsss_fast.config import Config, load_config, read_config
from gwsss_fast.data import encoded
from gwsss_fast.data.records import Record, Split
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupOutput
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.training import classifier, segmenter
from gwsss_fast.training.build import build_classifier, load_classifier
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.classifier import make_schedule, plain_phase, steps_per_epoch, train_classifier
from gwsss_fast.training.online_maps import OnlineMaps
from gwsss_fast.training.runs import Run, open_data
from gwsss_fast.training.segmenter import build_segmenter, load_segmenter, train_segmenter

SMALL = """
data: {workers: WORKERS}
classifier: {size: 32, epochs: 2, plain_epochs: 0, groups: 3, group_size: 3, warmup_steps: 2, color_jitter: 0.2}
segmenter: {crop: 33, iterations: 6, batch: 5, checkpoint_every: 100}
"""


DIVERGING = "{training: {nonfinite_limit: 2}, classifier: {graph_lr: 1e30, clip_norm: null, warmup_steps: 0}}"


def make_run(folder: Path, data: Path, text: str = "", workers: int = 0) -> Run:
    config = read_config(SMALL.replace("WORKERS", str(workers)), "small", load_config("quick"))
    config = read_config(f"data: {{root: {data}}}\n", "root", config)
    config = read_config(text, "test", config)
    return Run(folder, config, open_data(config.data), torch.device("cpu"))


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)["model"]


def assert_same(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def interrupting(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """`function` with Ctrl-C pressed during its call number `call`."""
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **options)

    return wrapped


@pytest.fixture
def decoded_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many JPEG files this process decoded for its device, batch by batch."""
    counts: list[int] = []
    decode = encoded.decode_jpeg

    def counting(files: list[Tensor], *options: Any) -> Any:
        counts.append(len(files))
        return decode(files, *options)

    monkeypatch.setattr(encoded, "decode_jpeg", counting)
    return counts


@pytest.mark.parametrize(("workers", "decode"), [(0, "workers"), (1, "workers"), (1, "device")])
def test_the_classifier_resumes_exactly(
    workers: int,
    decode: str,
    decoded_here: list[int],
    shared_voc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"data: {{decode: {decode}}}"
    whole = make_run(tmp_path / "whole", shared_voc, text)
    train_classifier(whole)
    assert decoded_here == ([1] + 8 * [9] if decode == "device" else [])  # a trial, then 3 groups of 3 a step
    broken = make_run(tmp_path / "broken", shared_voc, text, workers=workers)
    with monkeypatch.context() as patch:
        # Three numbers of the log are losses of their own: call 21 comes in step 6, the second of epoch 2.
        patch.setattr(classifier, "group_loss", interrupting(classifier.group_loss, 21))
        with pytest.raises(KeyboardInterrupt):
            train_classifier(broken)
    stopped = load_checkpoint(broken.classifier_checkpoint)
    assert (stopped["step"], stopped["epoch"], stopped["position"], stopped["complete"]) == (6, 1, 2, False)
    train_classifier(broken, resume=True)
    assert_same(whole.classifier_checkpoint, broken.classifier_checkpoint)
    assert load_checkpoint(broken.classifier_checkpoint)["complete"]


def with_pseudo_labels(run: Run) -> Run:
    for record in run.map_split.records:
        run.pseudo_file(record).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(record.mask), run.pseudo_file(record))
    return run


@pytest.mark.parametrize("decode", ["workers", "device"])
def test_the_segmenter_resumes_exactly(
    decode: str, decoded_here: list[int], shared_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{{segmenter: {{init: source}}, data: {{decode: {decode}}}}}"
    whole = with_pseudo_labels(make_run(tmp_path / "whole", shared_voc, text))
    train_segmenter(whole, whole.data.training)
    assert decoded_here == ([1] + 6 * [5] if decode == "device" else [])
    broken = with_pseudo_labels(make_run(tmp_path / "broken", shared_voc, text))
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "segmentation_loss", interrupting(segmenter.segmentation_loss, 3))
        with pytest.raises(KeyboardInterrupt):
            train_segmenter(broken, broken.data.training)
    stopped = load_checkpoint(broken.segmenter_checkpoint)
    assert (stopped["step"], stopped["epoch"], stopped["position"]) == (3, 1, 1)
    train_segmenter(broken, broken.data.training, resume=True)
    assert_same(whole.segmenter_checkpoint, broken.segmenter_checkpoint)


@pytest.mark.parametrize(("plain_epochs", "stop"), [(1, 3), (1, 4), (1, 5), (0.75, 3)])
def test_the_graph_joins_after_the_plain_epochs_and_a_resume_there_is_exact(
    plain_epochs: float, stop: int, shared_voc: Path, tmp_path: Path
) -> None:
    """Epochs of four steps, most of the first plain: stopped before, at and after the step where the graph joins."""
    text = f"classifier: {{plain_epochs: {plain_epochs}, epochs: 2}}\nmax_steps: "
    plain = make_run(tmp_path / "plain", shared_voc, f"{text}{round(4 * plain_epochs)}")
    train_classifier(plain)
    learnt = weights(plain.classifier_checkpoint)
    moved = {name for name, start in untrained(plain).items() if not torch.equal(learnt[name], start)}
    assert {name for name in moved if name.startswith("gnn.")} == {
        f"gnn.{readout}.{x}" for readout in ("initial_readout", "readout") for x in ("weight", "bias")
    }  # the final readout follows the intermediate one
    whole = make_run(tmp_path / "whole", shared_voc, f"{text}7")
    train_classifier(whole)
    broken = make_run(tmp_path / "broken", shared_voc, f"{text}{stop}")
    train_classifier(broken)
    train_classifier(make_run(tmp_path / "broken", shared_voc, f"{text}7"), resume=True)
    assert_same(whole.classifier_checkpoint, broken.classifier_checkpoint)


def test_a_short_training_leaves_time_for_the_graph(
    shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", shared_voc, "classifier: {plain_epochs: 6, epochs: 2}")
    train_classifier(run)
    assert "it joins at step 6" in " ".join(capsys.readouterr().err.split())
    learnt = weights(run.classifier_checkpoint)
    moved = {name for name, start in untrained(run).items() if not torch.equal(learnt[name], start)}
    assert {"gnn.co_attention.p.weight", "gnn.update.weight", "gnn.readout.weight"} <= moved
    alone = make_run(tmp_path / "alone", shared_voc, "classifier: {plain_epochs: 6, epochs: 2}\nmodel: {steps: 0}")
    assert plain_phase(alone, graph=False) == 24


def untrained(run: Run) -> dict[str, torch.Tensor]:
    """The weights that the run's training starts from."""
    torch.manual_seed(run.config.seed)
    return build_classifier(run.config, len(run.data.classes)).state_dict()


def test_the_classifier_learns_and_records_itself(shared_voc: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shared_voc, "classifier: {epochs: 15, size: 48}\nmodel: {steps: 1}")
    assert train_classifier(run) == "random"
    with (run.folder / "logs" / "classifier.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 60
    assert sum(losses[-8:]) < 0.75 * sum(losses[:8])
    content = load_checkpoint(run.classifier_checkpoint)
    assert content["classes"] == ["red", "green", "blue"]
    assert content["initialised_from"] == {"classifier": "random"}
    assert read_config(content["config"], "checkpoint") == run.config
    model, _ = load_classifier(run.config, run.classifier_checkpoint, run.data.classes)
    assert not model.training
    assert list((run.folder / "logs" / "tensorboard" / "classifier").glob("events*"))


def test_online_maps_hold_nothing_of_a_step_that_was_skipped() -> None:
    maps = OnlineMaps(Split("train", ("a", "b"), (Record("x", Path("x.jpg"), labels=(1,)),)))
    shape, none = (1, 1, 2, 3, 3), torch.zeros(0)
    for value in (math.nan, 0.5, math.nan):
        raw = torch.full(shape, value)
        raw[..., 0, 0] = 2 * value
        maps.update(GroupOutput(none, none, None, raw, raw, none), torch.tensor([[0]]))
    stored = maps.state()["online_maps"]["x"]
    assert stored.isfinite().all()
    assert stored.max() == pytest.approx(1, abs=1e-3)


def test_a_finished_training_with_a_damaged_checkpoint_is_not_complete(copied: tuple[Path, Path]) -> None:
    _, folder = copied
    run = cli.open_run(folder, cli.stored_config(folder))
    assert run.complete("classifier")
    content = bytearray(run.classifier_checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    run.classifier_checkpoint.write_bytes(content)
    assert not run.complete("classifier")


def test_the_weights_alone_start_another_training(finished: tuple[Path, Path]) -> None:
    _, run = finished
    path = run / "classifier" / "weights.safetensors"
    trained = load_checkpoint(run / "classifier" / "last.pt")["model"]
    backbone = build_backbone("tiny", str(path))
    assert "weights.safetensors (sha256 " in backbone.initialised_from
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, trained[f"backbone.{name}"]), name
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["stage"] == "classifier"
    assert json.loads(facts["initialised_from"]) == {"classifier": "random"}


def test_the_seed_decides(shared_voc: Path, tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((0, 0, 1)):
        run = make_run(tmp_path / str(number), shared_voc, f"seed: {seed}\nmax_steps: 2")
        train_classifier(run)
        results.append(weights(run.classifier_checkpoint)["gnn.initial_readout.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_no_group_trains_a_plain_classifier(shared_voc: Path, tmp_path: Path) -> None:
    text = "model: {steps: 0}\nclassifier: {loss_weights: [1, 0, 0], sampling: random}\nmax_steps: 2"
    run = make_run(tmp_path / "run", shared_voc, text)
    train_classifier(run)
    assert not any("attention" in name for name in weights(run.classifier_checkpoint))


def test_bf16_trains_on_the_cpu(shared_voc: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shared_voc, "precision: bf16\nmax_steps: 2")
    train_classifier(run)
    stored = weights(run.classifier_checkpoint)
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float32}


def test_a_loss_that_is_not_finite_names_the_step(shared_voc: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shared_voc, DIVERGING)
    with pytest.raises(GwsssError, match=r"the loss is (nan|inf) at step [2-8] \(images image_.*after 2 such steps"):
        train_classifier(run)


def test_a_checkpoint_for_another_model_is_refused(shared_voc: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shared_voc, "max_steps: 1")
    train_classifier(run)
    other = make_run(tmp_path / "run", shared_voc, "model: {graph_channels: 32}")
    with pytest.raises(GwsssError, match=r"last\.pt.*(shape|lacks)"):
        load_classifier(other.config, run.classifier_checkpoint, run.data.classes)
    with pytest.raises(GwsssError, match="trained for 3 classes"):
        load_classifier(run.config, run.classifier_checkpoint, ("one", "two"))


def test_online_maps_are_accumulated_and_survive_a_resume(
    shared_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "classifier: {mode: squash, flip: false, size: 48}\ncam: {oaa: true}"
    run = make_run(tmp_path / "run", shared_voc, text)
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "group_loss", interrupting(classifier.group_loss, 1))
        with pytest.raises(KeyboardInterrupt):
            train_classifier(run)
    early = load_checkpoint(run.classifier_checkpoint)["online_maps"]
    train_classifier(run, resume=True)
    late = load_checkpoint(run.classifier_checkpoint)["online_maps"]
    assert set(late) == {record.id for record in run.data.training.records}
    for record in run.data.training.records:
        assert late[record.id].shape == (2, len(record.labels), 6, 6)
    assert early
    for name, maps in early.items():
        assert (late[name] >= maps).all()


def test_the_segmenter_starts_from_where_it_is_told(shared_voc: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shared_voc, "max_steps: 1")
    train_classifier(run)
    trained = weights(run.classifier_checkpoint)
    model = build_segmenter(run)  # tiny: from the classifier
    assert torch.equal(model.body.features[0].weight, trained["backbone.features.0.weight"])  # type: ignore[index, union-attr]
    assert "classifier" in model.initialised_from
    fresh = build_segmenter(make_run(tmp_path / "run", shared_voc, "segmenter: {init: source}"))
    assert fresh.initialised_from == "random"
    assert not torch.equal(fresh.body.features[0].weight, trained["backbone.features.0.weight"])  # type: ignore[index, union-attr]
    with pytest.raises(GwsssError, match=r"segmenter\.init source"):
        build_segmenter(make_run(tmp_path / "run", shared_voc, "segmenter: {init: classifier, body: vgg16}"))


def test_a_multi_scale_segmenter_is_loaded_again(shared_voc: Path, tmp_path: Path) -> None:
    text = "segmenter: {init: source, multi_scale_loss: true}\nmax_steps: 1"
    run = with_pseudo_labels(make_run(tmp_path / "run", shared_voc, text))
    train_segmenter(run, run.data.training)
    model = load_segmenter(run.config, run.segmenter_checkpoint, run.data.classes)
    assert model(torch.zeros(1, 3, 40, 48)).shape == (1, 4, 5, 6)


def test_missing_pseudo_labels_are_named(shared_voc: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shared_voc)
    with pytest.raises(GwsssError, match=r"image_000\.png does not exist \(12 of 12\); run stage pseudo"):
        train_segmenter(run, run.data.training)


def test_schedule_and_epochs_of_the_paper() -> None:
    """VI-A3: times 0.1 every five epochs; an epoch leads every image once."""
    options = load_config("paper").classifier
    steps = steps_per_epoch(options, 10582)
    assert steps == 10582
    factor = make_schedule(options, 15 * steps, steps)
    assert [round(factor(epoch * steps), 6) for epoch in (0, 4, 5, 9, 10, 14)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert steps_per_epoch(load_config("quick").classifier, 401) == math.ceil(
        401 / load_config("quick").classifier.groups
    )


def test_the_projection_defaults_to_at_most_512_channels() -> None:
    config = read_config("model: {backbone: resnet101, weights: none, steps: 0}", "f")
    assert isinstance(config, Config)
    with torch.device("meta"):
        model = build_classifier(config, 5)
    assert model.gnn.in_channels == 512
