"""What tests of several rooms share: a data set of VOC layout that is drawn in a moment.

Without a GPU Triton interprets its kernels on the CPU, which has to be said before they are imported.
"""

import os
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before PyTorch is imported: the workers share the cores
    cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores, 1)))

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from gwsss_fast.data import embedded
from tests.command_line import run_train

THREADS = torch.get_num_threads()
COLOURS = {1: (200, 40, 40), 2: (40, 180, 60), 3: (50, 60, 210)}


def pytest_runtest_teardown() -> None:
    """Give PyTorch's thread count back: `--threads` sets it for the process, and sums depend on it in the last bit."""
    torch.set_num_threads(THREADS)


def draw_voc(root: Path, train: int = 12, val: int = 4, side: int = 48) -> Path:
    """Coloured squares on noise, three classes, one or two of them an image; with masks and saliency."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "Saliency", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    names = [f"image_{number:03d}" for number in range(train + val)]
    for number, name in enumerate(names):
        image = rng.integers(90, 150, (side, side, 3), dtype=np.uint8)
        mask = np.zeros((side, side), np.uint8)
        for label in {1 + number % 3, 1 + (number // 2) % 3}:
            y, x = rng.integers(0, side // 2, 2)
            mask[y : y + side // 3, x : x + side // 3] = label
        for label in np.unique(mask[mask > 0]):
            image[mask == label] = COLOURS[int(label)]
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(root / "Saliency" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("\n".join(names[:train]) + "\n")
    (lists / "train.txt").write_text("\n".join(names[: train // 2]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[train:]) + "\n")
    return root


@pytest.fixture
def small_voc(tmp_path: Path) -> Path:
    """A fresh small data set, free to be damaged: 12 training images (6 of them with scored masks), 4 for val."""
    return draw_voc(tmp_path / "small_voc")


@pytest.fixture(scope="session")
def shared_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, drawn once for all tests; not to be changed."""
    return draw_voc(tmp_path_factory.mktemp("shared") / "small_voc")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run): a complete run on a small embedded data set. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    data = embedded.build_embedded(folder, train=10, val=3, size=64)
    assert run_train(data, folder / "run") == 0
    return data, folder / "run"


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"
