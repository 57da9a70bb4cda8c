"""Every stage on miniature data sets in the layouts in which the field's are published."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gwsss_fast import check_data, localize
from gwsss_fast.data import coco
from gwsss_fast.data.dataset import open_dataset
from tests.command_line import STAGES, metrics, run_train
from tests.published_trees import make_coco2014, make_cub, make_voc2012

SHORT = ["--max-steps", "1", "--segmenter.batch", "2", "--group-size", "2", "--segmenter.iterations", "1"]
TREES = {
    "ids": lambda root: make_voc2012(root, "ids"),
    "paths, SBD": lambda root: make_voc2012(root, "paths", "str", sbd=True),
    "labels": lambda root: make_voc2012(root, "labels"),
    "COCO": make_coco2014,
    "CUB": make_cub,
}


@pytest.mark.parametrize("tree", TREES)
def test_every_stage(
    tree: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "cache_folder", lambda: tmp_path / "cache")  # an index of a test is of no use later
    data, run = TREES[tree](tmp_path / "data"), tmp_path / "run"
    assert check_data.main([str(data)]) == 0
    assert run_train(data, run, *SHORT) == 0
    found = metrics(run)
    assert list(found["seconds"]) == list(STAGES)
    opened = open_dataset(data)
    assert len(opened.classes) == {"COCO": 80, "CUB": 2}.get(tree, 20)
    for record in opened.validation.records:
        prediction = Image.open(run / "predictions" / f"{record.id}.png")
        assert np.asarray(prediction).max() <= len(opened.classes)
    if tree == "CUB":  # boxes and no masks
        assert "segmentation" not in found
        assert localize.main(["--run", str(run), "--overlays", "1"]) == 0
        assert "Top-1 Loc" in capsys.readouterr().out
    else:
        assert set(found["cam"]) == {"initial", "graph", "ensemble"}
        assert found["segmentation"]["miou"] > 0
        assert len(found["segmentation"]["iou"]) == len(opened.classes) + 1
