"""`python -m gwsss_fast.export_model`: the file, its descriptions, its report, its exit status."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gwsss_fast import cli, export_model
from gwsss_fast.data.images import read_image
from gwsss_fast.export.contents import kind_of, read_metadata
from gwsss_fast.export.metadata import read_beside, weights_checksum
from gwsss_fast.export.runtimes import labels_of, open_runtime, prepare
from tests.command_line import fails

FAST = ("--report-images", "2", "--repeats", "2", "--batch-sizes", "1", "2", "--device", "cpu", "--threads", "1")
SMALL = ("--height", "64", "--width", "64")
Run = tuple[Path, Path]


def run(finished: Run, output: Path, *words: object, stage: str = "segmenter") -> int:
    checkpoint = finished[1] / stage / "last.pt"
    return export_model.main([str(checkpoint), "--output", str(output), *FAST, *map(str, words)])


def test_onnx_of_any_size(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "model.onnx"
    assert run(finished, output) == 0
    assert {path.name for path in output.parent.iterdir()} == {
        "model.onnx",
        "model.onnx.json",
        "model.onnx.report.json",
    }
    metadata = read_metadata(output)
    assert read_beside(output) == metadata
    content = torch.load(finished[1] / "segmenter/last.pt", weights_only=True)
    assert metadata.classes == tuple(content["classes"])
    assert metadata.weights_sha256 == weights_checksum(content["model"])
    assert (metadata.body, metadata.height, metadata.opset) == ("tiny", (1, None), 18)
    facts = json.loads(Path(f"{output}.report.json").read_text())
    ((name, scores),) = facts["agreement"].items()
    assert facts["images"].startswith("2 validation images of ")
    assert facts["passed"] is True
    assert scores["pixel_agreement"] >= facts["bound"] == 0.999
    assert scores["masks"] == 2
    assert abs(scores["miou_difference"]) < 0.5
    assert {(row["runtime"], row["batch"]) for row in facts["timings"]} == {
        (who, batch) for who in ("eager fp32", name) for batch in (1, 2)
    }
    assert all(0 < row["p50_ms"] <= row["p90_ms"] for row in facts["timings"])
    printed = capsys.readouterr().out
    assert "equal pixels" in printed
    assert "images/s" in printed
    before = output.read_bytes()
    fails(capsys, run(finished, output), "exists", "--force")
    assert output.read_bytes() == before


def test_int8_with_everything_inside_at_a_fixed_size(finished: Run, tmp_path: Path) -> None:
    output, photos = tmp_path / "model.onnx", finished[0] / "JPEGImages"
    inside = ("--normalise", "--argmax", "--resize", "64x64", "--precision", "int8", "--calibration", photos)
    assert run(finished, output, *inside, "--calibration-images", 3, "--bound", 0.5, "--batch", 1) == 0
    facts = json.loads(Path(f"{output}.report.json").read_text())
    assert "ranges taken from 3 images" in facts["notes"][0]
    metadata = read_metadata(output)
    assert (metadata.precision, metadata.network_size, metadata.batch) == ("int8", (64, 64), (1, 1))
    image = read_image(next(photos.iterdir())).resize((50, 70))
    labels = open_runtime(output, "cpu")(prepare(image, metadata))
    assert labels.shape == (1, 70, 50)
    assert torch.equal(labels_of(labels, (70, 50)), labels)


def test_int8_of_two_images_at_a_time(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, photos = tmp_path / "model.onnx", finished[0] / "JPEGImages"
    int8 = ("--precision", "int8", "--calibration", photos, "--calibration-images", 3, "--bound", 0)
    assert run(finished, output, *int8, *SMALL, "--batch", 2, "--images", photos) == 0
    assert "what int8 costs in mIoU is not known without masks" in capsys.readouterr().out
    facts = json.loads(Path(f"{output}.report.json").read_text())
    ((_, scores),) = facts["agreement"].items()
    assert scores["pixel_agreement"] > 0.5


def test_below_the_bound_the_exit_status_is_1(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the exported network were another one; images and masks of folders."""
    write = export_model.write

    def spoilt(export: export_model.Export, path: Path) -> None:
        weights = {name: value.clone() for name, value in export.network.state_dict().items()}
        with torch.no_grad():
            export.network.aspp.branches[0].bias += torch.randn(len(export.metadata.labels)) * 10
        write(export, path)
        export.network.load_state_dict(weights)

    monkeypatch.setattr(export_model, "write", spoilt)
    folders = ("--images", finished[0] / "JPEGImages", "--masks", finished[0] / "SegmentationClass")
    output = tmp_path / "model.pt2"
    assert run(finished, output, "--format", "torch-export", *SMALL, *folders) == 1
    facts = json.loads(Path(f"{output}.report.json").read_text())
    assert facts["passed"] is False
    ((_, scores),) = facts["agreement"].items()
    assert scores["masks"] == 2
    assert "agreement is below 0.999; exit status 1" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this says what happens without a GPU")
def test_an_engine_is_described_and_not_run(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "model.engine"
    more = ("--format", "tensorrt-rtx", "--compute-capabilities", "8.6", "12.0", *SMALL, "--images", "none")
    fails(capsys, run(finished, output, *more), "--images none: no image there")
    assert not list(tmp_path.iterdir())
    assert run(finished, output, *more[:-2], "--batch", "1:4") == 0
    assert kind_of(output) == "tensorrt-rtx"
    metadata = read_metadata(output)
    assert metadata.compute_capabilities == ("8.6", "12.0")
    assert metadata.batch == (1, 4)
    facts = json.loads(Path(f"{output}.report.json").read_text())
    assert facts["parsed"]["inputs"] == {"images": [-1, 3, 64, 64]}
    assert facts["passed"] is None
    assert "needs an NVIDIA GPU and driver" in capsys.readouterr().err


def test_a_classifier(finished: Run, tmp_path: Path) -> None:
    output = tmp_path / "model.pt2"
    more = ("--format", "torch-export", *SMALL, "--batch", 1, "--group-size", 2)
    assert run(finished, output, *more, stage="classifier") == 0
    metadata = read_metadata(output)
    assert (metadata.task, metadata.group_size) == ("group-classification", 2)
    facts = json.loads(Path(f"{output}.report.json").read_text())
    ((_, scores),) = facts["agreement"].items()
    assert scores["pixel_agreement"] >= 0.999
    assert "miou" not in scores


def test_generated_images_where_the_data_is_gone(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    options = export_model.Arguments(str(finished[1] / "segmenter/last.pt"), output=str(tmp_path / "x.onnx"))
    export = export_model.open_export(options)
    export.config = replace(export.config, data=replace(export.config.data, root=str(tmp_path / "gone")))
    samples, source = export_model.report_samples(export)
    assert len(samples) == 4
    assert "4 generated images" in source
    assert "gone" in source


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "torch-export"), "ends in .pt2"),
        (("--batch", "0"), "--batch 0"),
        (("--height", "9:3"), "--height 9:3"),
        (("--resize", "big"), "--resize big"),
        (("--precision", "int8"), "--calibration FOLDER belong together"),
        (("--calibration", "x"), "--calibration FOLDER belong together"),
        (("--output", "."), "ends in .onnx"),
        (("--bound", "2"), "--bound 2"),
        (("--masks", "x"), "--masks belongs to --images"),
        (("--precision", "int8", "--calibration", "none"), "--calibration none: no image there"),
        (("--report-images", "0"), "--report-images 0"),
        (("--device", "cuda:9"), "cuda"),
        (("--foramt", "onnx"), "unknown option --foramt; did you mean '--format'?"),
    ],
)
def test_bad_options(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    fails(capsys, run(finished, tmp_path / "model.onnx", *words), message)
    assert not list(tmp_path.iterdir())


def test_other_bad_input(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, export_model.main(["none.pt"]), "none.pt does not exist")
    pt2 = tmp_path / "x.pt2"
    int8 = ("--precision", "int8", "--calibration", finished[0])
    fails(capsys, run(finished, pt2, "--format", "aoti", *int8), "aoti has no int8")
    fails(capsys, run(finished, tmp_path / "x.onnx", "--argmax", stage="classifier"), "--argmax is for segmenters")
    torch.save({"model": {}}, tmp_path / "bare.pt")
    fails(capsys, export_model.main([str(tmp_path / "bare.pt")]), "checkpoint of a run")
    assert cli.VERBS["export-model"] == "export_model"
