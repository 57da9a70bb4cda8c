"""Single parts of the report against values worked out by hand or by plain loops."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from synthetic_run import FakeClassifier, write_data, write_run

from gwsss_fast.data.records import Record, Split
from gwsss_fast.report import attention, cases, curves, gallery, plots
from gwsss_fast.report.images import ImageBudget, heat_overlay, label_picture, thumbnail
from gwsss_fast.report.run_folder import Maps, Missing, RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("parts")
    write_data(root / "data")
    return RunFolder(write_run(root / "run", root / "data"))


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_label_pictures_keep_their_values() -> None:
    mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    uri = ImageBudget().data_uri(label_picture(mask, (8, 6)), lossless=True)
    assert uri is not None
    assert uri.startswith("data:image/png;base64,")
    shown = np.asarray(decode(uri))
    assert shown.shape == (6, 8)
    assert [shown[0, 0], shown[0, 7], shown[5, 0], shown[5, 7]] == [0, 1, 2, 255]


def test_heat_brightens_where_it_is_hot_and_survives_bad_values() -> None:
    picture = Image.new("RGB", (40, 20), (60, 120, 60))
    heat = np.zeros((4, 8), dtype=np.float32)
    heat[:, 4:] = 1
    heat[0, 0] = np.nan
    shown = np.asarray(heat_overlay(picture, heat), dtype=int)
    assert shown.shape == (20, 40, 3)
    assert shown[10, 35, 0] > shown[10, 5, 0] + 100


def test_the_budget_stops_at_its_limit() -> None:
    budget = ImageBudget(limit=1000)
    assert budget.text("x" * 600) is not None
    assert budget.text("x" * 401) is None
    assert budget.text("x" * 400) is not None
    assert (budget.used, budget.dropped) == (1000, 1)


def test_thumbnails_keep_the_shape_and_do_not_grow() -> None:
    assert thumbnail(Image.new("L", (400, 100)), 200).size == (200, 50)
    assert thumbnail(Image.new("RGB", (40, 10)), 200).size == (40, 10)


def test_the_running_mean_against_loops() -> None:
    values = np.random.default_rng(0).random(230)
    values[7] = np.nan
    half = 230 // 25 // 2
    expected = []
    for index in range(230):
        near = [values[k] for k in range(max(0, index - half), min(230, index + half + 1)) if not math.isnan(values[k])]
        expected.append(sum(near) / len(near))
    mean = plots.running_mean(values)
    assert mean is not None
    np.testing.assert_allclose(mean, expected)
    assert plots.running_mean(values[:99]) is None


def test_plots_take_the_colour_of_the_page_and_write_plain_names() -> None:
    svg = plots.line_plot(
        {"a $b$ <c>": ([0, 1], [2.0, 3.0]), "d": ([0, 1], [1.0, 1.5])}, x_label="x", y_label="y", salt="s"
    )
    assert svg.startswith("<svg")
    assert "a $b$ &lt;c&gt;" in svg
    assert "currentColor" in svg
    assert plots.INK not in svg


def test_a_log_becomes_panels() -> None:
    nan = math.nan
    log = {
        "step": np.array([1.0, 2, 3]),
        "epoch": np.array([0.0, 0, 1]),
        "loss": np.array([3.0, 2, 1]),
        "edge_loss": np.array([1.0, nan, 0.5]),
        "lr": np.array([0.1, 0.1, 0.01]),
        "val_miou": np.array([nan, nan, 40.0]),
        "note": np.array([nan, nan, nan]),
    }
    panels = dict(curves._panels(log, log["step"]))
    assert list(panels) == ["loss", "learning rate", "val miou"]
    assert list(panels["loss"]) == ["loss", "edge loss"]
    assert panels["loss"]["edge loss"][0].tolist() == [1, 3]
    assert panels["val miou"]["val miou"][1].tolist() == [40]


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.24, "4.2 s"), (65, "1 min 05 s"), (3599.6, "1 h 00 min"), (7621, "2 h 07 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert curves.duration(seconds) == words


def test_groups_are_of_the_runs_size_and_show_different_classes_first(run: RunFolder) -> None:
    split = run.map_split
    groups = gallery.sample_groups(run, split, 3)
    assert [len(set(group.tolist())) for group in groups] == [3, 3, 3]
    assert len({gallery.shared_class(split, group) for group in groups}) == 3


def test_the_shared_class_is_the_most_frequent_and_the_anchors_among_equals() -> None:
    label_sets = ((1, 2), (0, 1), (0, 2))
    records = tuple(Record(str(index), Path(), labels=labels) for index, labels in enumerate(label_sets))
    split = Split("train", ("a", "b", "c", "d"), records)
    assert gallery.shared_class(split, [0, 1, 2]) == 1
    assert gallery.shared_class(split, [1, 0, 2]) == 0
    assert gallery.shared_class(split, [2, 0, 2]) == 2


def test_groups_need_enough_images(run: RunFolder) -> None:
    with pytest.raises(Missing, match="fewer than 3 images"):
        gallery.sample_groups(run, run.map_split.subset([0, 1]))


def test_map_labels_need_more_than_the_threshold() -> None:
    heat = np.array([[[0.2, 0.5, 0.9]], [[0.1, 0.6, 0.9]]], dtype=np.float32)
    labels = cases.map_labels(Maps(np.array([2, 4]), {"ensemble": heat}), 0.5)
    assert labels.tolist() == [[0, 5, 3]]
    nothing = Maps(np.array([], dtype=np.int64), {"ensemble": np.zeros((0, 2, 3), dtype=np.float32)})
    assert cases.map_labels(nothing, 0.5).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_cases_are_ranked_by_their_own_miou(run: RunFolder) -> None:
    shown = cases.segmentation_cases(run, ImageBudget())
    scores = {}
    for record in run.data_set.splits["val"].records:
        truth = np.asarray(Image.open(record.mask))  # type: ignore[arg-type]
        predicted = np.asarray(Image.open(run.path / "predictions" / f"{record.id}.png"))
        counted = truth != 255
        present = np.union1d(truth[counted], predicted[counted])
        scores[record.id] = 100 * jaccard_score(truth[counted], predicted[counted], labels=present, average="macro")
    order = sorted(scores, key=lambda name: -scores[name])
    assert [row["id"] for row in shown["best"]] == order[:3]
    assert [row["id"] for row in shown["worst"]] == order[:-4:-1]
    for row in shown["best"] + shown["worst"]:
        assert row["miou"] == pytest.approx(scores[row["id"]])


def test_the_largest_error_in_words() -> None:
    confusion = np.array([[50, 0, 2], [0, 10, 30], [0, 0, 8]])
    case = cases.Case(None, 0.0, confusion)  # type: ignore[arg-type]
    assert cases.largest_error(case, ("sofa", "chair")) == "sofa taken for chair (30 % of the image)"
    case = cases.Case(None, 0.0, np.diag([3, 4, 5]))  # type: ignore[arg-type]
    assert cases.largest_error(case, ("sofa", "chair")) == "no wrong pixel"


def test_errors_are_coloured_by_kind() -> None:
    labels = np.array([[0, 1, 2, 1, 0, 255]], dtype=np.uint8)
    truth = np.array([[1, 0, 1, 1, 255, 1]], dtype=np.uint8)
    shown = np.asarray(cases.error_picture(Image.new("RGB", (6, 1)), labels, truth)).astype(int)[0]
    for pixel, colour in ((0, cases.MISSED), (1, cases.FALSE_OBJECT), (2, cases.WRONG_CLASS), (5, cases.MISSED)):
        assert abs(shown[pixel] - np.array(colour)).max() < 50
    assert shown[3].tolist() == shown[4].tolist() == [64, 64, 64]


def test_attention_is_that_of_the_model() -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(3)]
    model = FakeClassifier()
    rows, height, width = attention.group_attention(model, pictures, 32)
    assert (rows.shape, height, width) == ((3, 3, 16, 16), 4, 4)
    np.testing.assert_allclose(rows.sum(-1), np.repeat((1 - np.eye(3))[..., None], 16, axis=2), atol=1e-5)
    assert isinstance(rows, np.ndarray)
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    cells = []
    for picture in pictures:
        pixels = torch.tensor(np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)))
        cells.append(((pixels / 255 - mean) / spread).reshape(4, 8, 4, 8, 3).mean((1, 3)).reshape(16, 3).double())
    scores = [math.exp(-3 * float(((cells[2][5] - sender) ** 2).sum())) for sender in cells[0]]
    np.testing.assert_allclose(rows[2, 0, 5], np.array(scores) / sum(scores), rtol=1e-4, atol=1e-6)


def unpack(text: str, nodes: int, positions: int) -> np.ndarray:
    """The values as the page's script reads them: multiples of the even share, (pairs, N, N)."""
    data = base64.b64decode(text)
    pairs = nodes * (nodes - 1)
    ranges = np.frombuffer(data, "<f4", pairs * positions * 2).reshape(pairs, positions, 2).astype(np.float64)
    levels = np.frombuffer(data, np.uint8, offset=ranges.size * 4).reshape(pairs, positions, positions)
    return ranges[..., :1] + levels / 255 * (ranges[..., 1:] - ranges[..., :1])


def test_packed_attention_can_be_read_back() -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(6, 0.5), size=(3, 3, 6))
    rows[0, 1, 2] = 1 / 6
    values = unpack(attention.pack(rows), 3, 6)
    order = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    for index, (receiver, sender) in enumerate(order):
        span = 6 * np.ptp(rows[receiver, sender], axis=-1, keepdims=True)
        assert (abs(values[index] - 6 * rows[receiver, sender]) <= span / 510 + 1e-6).all()


def test_a_fine_grid_is_averaged_down(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(24), size=(2, 2, 24)).astype(np.float32)  # 4 x 6 positions
    assert attention.downsample(rows, 4, 6)[0] is rows
    monkeypatch.setattr(attention, "VALUES_PER_GROUP", 2 * 6**2)  # room for 6 positions: 2 x 3
    small, height, width = attention.downsample(rows, 4, 6)
    assert (height, width) == (2, 3)
    np.testing.assert_allclose(small.sum(-1), 1, rtol=1e-5)
    inside = [6 * y + x for y in (2, 3) for x in (4, 5)]  # the last coarse cell
    first = [6 * y + x for y in (0, 1) for x in (0, 1)]
    expected = np.mean([sum(rows[0, 1, receiver, sender] for sender in first) for receiver in inside])
    assert small[0, 1, 5, 0] == pytest.approx(expected, rel=1e-5)


def test_the_first_position_lies_on_the_object(run: RunFolder) -> None:
    for record in run.map_split.records:
        label = record.labels[0]
        mask = np.asarray(Image.open(record.mask))  # type: ignore[arg-type]
        position = attention.object_position(run, record, label, 9, 12)
        y, x = divmod(position, 12)
        cell = mask[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        assert (cell == label + 1).mean() > 0.45
    assert attention.object_position(run, run.map_split.records[0], 99, 5, 7) == 2 * 7 + 3


def test_a_model_without_graph_has_no_panel(run: RunFolder, tmp_path: Path) -> None:
    from gwsss_fast.GroupGNN import GroupGNN
    from gwsss_fast.report.build import build_report

    model = FakeClassifier()
    model.gnn = GroupGNN(3, 3, steps=0)
    page = build_report(run.path, load_classifier=lambda path: model).read_text(encoding="utf-8")
    assert "this model has steps = 0, so it has no co-attention" in page


def test_the_real_model_fits(run: RunFolder) -> None:
    from gwsss_fast.GroupGNN import GroupGNN
    from gwsss_fast.models.backbones import build_backbone
    from gwsss_fast.models.group_classifier import GroupClassifier

    torch.manual_seed(0)
    model = GroupClassifier(build_backbone("tiny", "none"), GroupGNN(16, 3))
    shown = attention.attention_panels(run, ImageBudget(), model)
    panel = shown["panels"][0]
    positions = panel["data"]["height"] * panel["data"]["width"]
    values = unpack(panel["data"]["values"], 3, positions)
    np.testing.assert_allclose(values.mean(-1), 1, atol=0.02)
