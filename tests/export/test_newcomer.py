"""The README's way from one's own images to masks, command by command, on a small embedded data set."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.data.images import read_image
from tests.command_line import FAST

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "gwsss_fast.train": [*FAST, "--backbone", "tiny"],
    "gwsss_fast.export_model": [
        "--report-images",
        "1",
        "--repeats",
        "1",
        "--batch-sizes",
        "1",
        "--height",
        "64",
        "--width",
        "64",
    ],
}
"""What makes each command small; the rest is the reader's."""


def test_from_images_to_masks(finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (body,) = re.findall(r"^```sh newcomer\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    install, *commands = [shlex.split(line) for line in body.splitlines()]
    assert install == ["python", "-m", "pip", "install", "-e", ".[export]"]
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], "my_images")
    Path("photos").mkdir()
    image = read_image(next((finished[0] / "JPEGImages").iterdir()))
    image.resize((90, 50)).save("photos/holiday.png")
    for python, dash, module, *words in commands:
        assert (python, dash) == ("python", "-m")
        assert importlib.import_module(module).main([*words, *QUICK.get(module, [])]) == 0, module
    mask = Image.open("masks/holiday.png")
    assert mask.size == (90, 50)
    assert set(np.unique(np.asarray(mask))) <= set(range(9))
    assert Path("model.onnx.report.json").is_file()
