"""A run folder as the pipeline would leave it, small and made of drawn pictures, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from gwsss_fast.data.palette import voc_palette

CLASSES = ("disc", "square <&>", "bar $x$")
METRICS: dict[str, Any] = {
    "cam": {
        "initial": {"miou": 41.234, "best_threshold": 0.03, "curve": [5.0, 20.0, None, 41.234, 30.0]},
        "graph": {"miou": 44.567, "best_threshold": 0.03, "curve": [6.0, 25.0, 40.0, 44.567, 33.0]},
        "ensemble": {"miou": 46.891, "best_threshold": 0.03, "curve": [7.0, 26.0, 42.0, 46.891, 35.0]},
    },
    "cam_val": {
        "tags": {"miou": 43.5, "best_threshold": 0.02, "curve": [1.0, 2.0, 43.5]},
        "predicted": {"miou": 42.25, "best_threshold": 0.01, "curve": [1.0, 42.25, 3.0]},
    },
    "pseudo": {"miou": 51.017, "coverage": 93.46},
    "segmentation": {
        "miou": 58.349,
        "iou": {"background": 88.12, "disc": 55.55, "square <&>": 31.38, "bar $x$": None},
    },
    "seconds": {"classifier": 181.2, "cam": 40.0, "pseudo": 4.25, "segmenter": 95.0},
    "environment": {"python": "3.11.2", "torch": "2.14.1", "device": "cpu", "gpu": None, "threads": 2},
    "initialised_from": {"backbone": "random <weights>", "segmenter": "classifier"},
}


def write_data(root: Path, train: int = 10, val: int = 6, size: tuple[int, int] = (96, 72)) -> None:
    """A VOC-layout data set: one or two coloured shapes on noise, with exact masks."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    names = [f"2030_{index:06d}" for index in range(train + val)]
    for index, name in enumerate(names):
        image, mask = draw(rng, index % len(CLASSES), size)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=90)
        save_labels(root / "SegmentationClass" / f"{name}.png", mask)
    lists = {"train": names[:train], "train_aug": names[:train], "val": names[train:]}
    for split, listed in lists.items():
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(listed) + "\n")


def draw(rng: np.random.Generator, label: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 and its mask (H, W) uint8 with the shape of class `label` and sometimes the next one."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    base = np.array(rng.integers(60, 150, 3))
    image = (base + 18 * rng.standard_normal((height, width, 1)) + 0.25 * x[..., None]).clip(0, 255)
    mask = np.zeros((height, width), dtype=np.uint8)
    shapes = [label] if rng.random() < 0.6 else [label, (label + 1) % len(CLASSES)]
    for number, shape in enumerate(shapes):
        cx, cy = rng.uniform(0.3, 0.7) * width / len(shapes) + number * width / 2, rng.uniform(0.35, 0.65) * height
        radius = 0.2 * height
        inside = {
            0: (x - cx) ** 2 + (y - cy) ** 2 < radius**2,
            1: np.maximum(abs(x - cx), abs(y - cy)) < radius,
            2: (abs(x - cx) < 0.3 * radius) & (abs(y - cy) < 1.4 * radius),
        }[shape]
        image[inside] = np.array([[220, 60, 50], [60, 170, 240], [240, 210, 70]][shape]) + rng.uniform(-20, 20)
        mask[inside] = shape + 1
    mask[:2] = 255
    return image.clip(0, 255).astype(np.uint8), mask


def save_labels(path: Path, mask: np.ndarray) -> None:
    """Write a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().tobytes())
    picture.save(path)


def blur(mask: np.ndarray, rng: np.random.Generator, grain: int) -> np.ndarray:
    """A soft map in [0, 1] around the object, with blotches as large as 1/grain of the picture."""
    height, width = mask.shape
    coarse = Image.fromarray(mask.astype(np.float32)).resize((grain, grain), Image.Resampling.BOX)
    noisy = np.asarray(coarse) + 0.12 * rng.random((grain, grain), dtype=np.float32)
    soft = np.asarray(Image.fromarray(noisy.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    return (soft.clip(0) / max(float(soft.max()), 1e-5)).clip(0, 1).astype(np.float16)


def write_run(folder: Path, data: Path, *, train: int = 10, val: int = 6) -> Path:
    """A complete run on the data set at `data` (made by `write_data`). Gives `folder`."""
    rng = np.random.default_rng(1)
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"seed: 3\nmodel:\n  backbone: tiny\nclassifier:\n  group_size: 3\n  sampling: greedy\n  size: 64\n"
        f"data:\n  root: {data}\n  layout: voc\n",
        encoding="utf-8",
    )
    (folder / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
    steps = np.arange(1, 201)
    for name, column in (("classifier", "map"), ("segmenter", "miou")):
        lines = [f"step,epoch,loss,loss_edge,lr,{column}"]
        for step in steps:
            score = f"{60 * (1 - np.exp(-step / 80)):.3f}" if step % 20 == 0 else ""
            noise = 1 + 0.2 * rng.standard_normal()
            loss = np.exp(-step / 70) * noise
            lines.append(
                f"{step},{step // 50},{loss:.4f},{0.3 * loss:.4f},{0.01 * (1 - step / 201) ** 0.9:.5f},{score}"
            )
        (folder / "logs" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    for index in range(train + val):
        _write_image(folder, data, f"2030_{index:06d}", rng, validation=index >= train)
    for stage in ("classifier", "segmenter"):
        (folder / stage).mkdir()
        (folder / stage / "last.pt").write_bytes(b"stands for a checkpoint")
    return folder


def _write_image(folder: Path, data: Path, name: str, rng: np.random.Generator, *, validation: bool) -> None:
    mask = np.asarray(Image.open(data / "SegmentationClass" / f"{name}.png"))
    keys = np.array([value - 1 for value in np.unique(mask) if 0 < value < 255])
    if validation:
        shifted = np.roll(mask, int(rng.integers(-8, 9)), axis=1)
        save_labels(folder / "predictions" / f"{name}.png", np.where(shifted == 255, 0, shifted).astype(np.uint8))
        return
    heat = {
        readout: np.stack([blur(mask == key + 1, rng, grain) for key in keys])
        for readout, grain in (("initial", 8), ("graph", 14), ("high_res", 20))
    }
    stored = {"keys": keys, "cam": heat["high_res"][:, ::8, ::8], **heat}
    (folder / "cams").mkdir(exist_ok=True)
    np.save(folder / "cams" / f"{name}.npy", np.array(stored, dtype=object), allow_pickle=True)
    save_labels(folder / "pseudo" / f"{name}.png", np.where(rng.random(mask.shape) < 0.02, 255, mask).astype(np.uint8))


class FakeClassifier(nn.Module):
    """Features are average-pooled pixels; attention is softmax of their negative distance."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.weight = nn.Parameter(torch.ones(1))
        self.gnn: Any = SimpleNamespace(attention_rows=self.attention_rows)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(images[0])[None] * self.weight

    def attention_rows(self, features: torch.Tensor, receiver: int) -> torch.Tensor:
        nodes = features[0].flatten(2).transpose(1, 2)
        rows = torch.softmax(-3 * torch.cdist(nodes[receiver][None], nodes) ** 2, dim=-1)
        rows[receiver] = 0
        return rows


class FakeSegmenter(nn.Module):
    """Logits at a quarter of the size; class 1 wherever the picture is red."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = (images[:, :1] - images[:, 2:]) * self.weight
        logits = torch.cat([torch.zeros_like(red), red - 0.8, red * 0 - 9, red * 0 - 9], dim=1)
        return torch.nn.functional.avg_pool2d(logits, 4)
