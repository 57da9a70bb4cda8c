"""Miniature data sets in the layouts in which PASCAL VOC with SBD, COCO 2014 and CUB-200-2011 are published."""

import json
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as rle

SIDE = 48
COLOURS = ((200, 40, 40), (40, 180, 60), (50, 60, 210), (220, 200, 40))
# Ids of COCO's 80 categories: those missing up to 90 were never annotated.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def picture(mask: np.ndarray, seed: int) -> Image.Image:
    """Noise with a colour for each class of the mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 150, (*mask.shape, 3), dtype=np.uint8)
    for value in np.unique(mask[(mask > 0) & (mask < 255)]).tolist():
        image[mask == value] = COLOURS[value % len(COLOURS)]
    return Image.fromarray(image)


def square(value: int, place: int, side: int = 20) -> np.ndarray:
    """A mask with one square of a class, at one of four places."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    y, x = 3 + 22 * (place // 2 % 2), 4 + 22 * (place % 2)
    mask[y : y + side, x : x + side] = value
    return mask


def make_voc2012(root: Path, dialect: str, keys: str = "int", sbd: bool = False) -> Path:
    """VOCdevkit/VOC2012, its lists in one dialect (`ids`, `paths` or `labels`), cls_labels.npy with keys of one kind.

    sbd: the additional training images have no SegmentationClassAug but SBD's cls/ID.mat.
    """
    voc = root / "VOCdevkit" / "VOC2012"
    masks = voc / ("SegmentationClass" if sbd else "SegmentationClassAug")
    for folder in (voc / "JPEGImages", masks, voc / "SegmentationClass", voc / "cls", voc / "ImageSets/Segmentation"):
        folder.mkdir(parents=True, exist_ok=True)
    names, vectors = [f"2007_{number:06d}" for number in range(12)], {}
    for number, name in enumerate(names):
        label = 1 + number % 3
        mask = square(label, number)
        mask[0, :3] = 255
        picture(mask, number).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
        if sbd and number >= 4 and number < 9:
            cell = np.zeros((1, 1), [("Segmentation", object)])
            cell["Segmentation"][0, 0] = np.where(mask == 255, 0, mask)
            scipy.io.savemat(voc / "cls" / f"{name}.mat", {"GTcls": cell})
        else:
            Image.fromarray(mask).save(masks / f"{name}.png")
        vectors[int(name.replace("_", "")) if keys == "int" else name] = np.eye(20, dtype=np.float32)[label - 1]
    parts = {"train": names[:4], "train_aug": names[:9], "val": names[9:]}
    for part, own in parts.items():
        lines = [_line(dialect, name, 1 + names.index(name) % 3, masks.name) for name in own]
        (voc / "ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    np.save(voc / "cls_labels.npy", vectors)  # type: ignore[arg-type]
    return root


def _line(dialect: str, name: str, label: int, masks: str) -> str:
    if dialect == "paths":
        return f"/JPEGImages/{name}.jpg /{masks}/{name}.png"
    return f"{name} {label - 1}" if dialect == "labels" else name


def polygon(mask: np.ndarray) -> list[list[float]]:
    """The outline of a rectangle in a mask."""
    y, x = np.nonzero(mask)
    left, right, top, bottom = x.min(), x.max() + 1, y.min(), y.max() + 1
    return [[float(v) for v in (left, top, right, top, right, bottom, left, bottom)]]


def make_coco2014(root: Path) -> Path:
    """train2014/, val2014/ and annotations/: polygons, a crowd as plain RLE, overlaps, an image without objects."""
    for folder in ("annotations", "train2014", "val2014"):
        (root / folder).mkdir(parents=True)
    categories = [{"id": i, "name": f"class {i}", "supercategory": "x"} for i in COCO_IDS]
    for part, count, first in (("train", 8, 9), ("val", 4, 42)):
        images, annotations = [], []
        for number in range(count):
            key = first + 7 * number
            name = f"COCO_{part}2014_{key:012d}.jpg"
            label = (1, 18, 90)[number % 3]
            mask, other = square(1, number), square(1, number, 9)
            picture(mask * (1 + number % 3), key).save(root / f"{part}2014" / name, quality=95)
            images.append({"id": key, "file_name": name, "width": SIDE, "height": SIDE})
            if number == count - 1:
                continue  # no objects at all
            annotations.append(_annotation(key, label, polygon(mask), mask))
            if number % 2:
                annotations.append(_annotation(key, 44, polygon(other), other))  # on top, for it is smaller
            crowd = np.zeros((SIDE, SIDE), np.uint8)
            crowd[30:, :] = 1
            annotations.append(_annotation(key, 1, {"size": [SIDE, SIDE], "counts": _counts(crowd)}, crowd, 1))
            if number == 2:
                compressed = rle.encode(np.asfortranarray(other))
                code = {"size": compressed["size"], "counts": compressed["counts"].decode()}
                annotations.append(_annotation(key, 90, code, other))
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}2014.json").write_text(json.dumps(content))
    return root


def _annotation(image: int, label: int, outline: object, mask: np.ndarray, crowd: int = 0) -> dict:
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    facts = {"image_id": image, "category_id": label, "iscrowd": crowd, "area": float(mask.sum()), "bbox": box}
    return {**facts, "segmentation": outline}


def _counts(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, beginning with zeros."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, len(flat)]).tolist()
    return runs if flat[0] == 0 else [0, *runs]


def make_cub(root: Path, images: int = 5) -> Path:
    """CUB_200_2011 with two classes, `images` of each to learn from and three to test on, numbers from 1."""
    cub = root / "CUB_200_2011"
    classes = ("001.Black_footed_Albatross", "200.Common_Yellowthroat")
    lines: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split", "boxes")}
    number = 0
    for label, name in enumerate(classes, 1):
        (cub / "images" / name).mkdir(parents=True)
        for own in range(images + 3):
            number += 1
            file = f"{name}/{name[4:]}_{own:04d}_{number}.jpg"
            mask = square(label, own)
            y, x = np.nonzero(mask)
            picture(mask, number).save(cub / "images" / file, quality=95)
            lines["images"].append(f"{number} {file}")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {int(own < images)}")
            lines["boxes"].append(f"{number} {float(x.min())} {float(y.min())} {np.ptp(x):.1f} {np.ptp(y):.1f}")
    lines["bounding_boxes"] = lines.pop("boxes")
    lines["classes"] = [f"{label} {name}" for label, name in enumerate(classes, 1)]
    for name, rows in lines.items():
        (cub / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return root
