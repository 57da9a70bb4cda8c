"""The co-attention of a trained classifier, small enough to be put into the page and looked at by clicking."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from gwsss_fast.data.images import read_image
from gwsss_fast.data.transforms import normalise
from gwsss_fast.report.gallery import sample_groups, shared_class
from gwsss_fast.report.images import ImageBudget, heat_palette, thumbnail
from gwsss_fast.report.run_folder import Missing, RunFolder

GROUPS = 2
SIDE = 260
# Quantised attention values stored for one group; a finer grid is averaged down until it fits.
VALUES_PER_GROUP = 500_000


def group_attention(model: Any, pictures: Sequence[Image.Image], size: int) -> tuple[np.ndarray, int, int]:
    """Attention between the pictures of one group, each squashed to size x size pixels.

    Returns (K, K, N, N) [receiver, sender, row, column] float32, whose rows are probabilities over the sender's
    positions (zero for an image with itself), with H and W, N = H W.
    """
    squashed = [picture.resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
    device = next(model.parameters()).device
    images = torch.stack([normalise(picture) for picture in squashed])[None].to(device)
    model.eval()
    with torch.inference_mode():
        features = model.features(images)
        rows = torch.stack([model.gnn.attention_rows(features, receiver) for receiver in range(len(pictures))])
    height, width = features.shape[-2:]
    return rows.float().cpu().numpy(), int(height), int(width)


def attention_panels(run: RunFolder, budget: ImageBudget, model: torch.nn.Module) -> dict[str, Any]:
    """Panels of up to two sampled groups: pictures, quantised attention, and a first position that lies on an object.

    Raises Missing when no group can be sampled or groups have one image only.
    """
    split = run.map_split
    size = int(run.option("cam", "size", default=run.option("classifier", "size", default=224)))
    panels = []
    for number, group in enumerate(sample_groups(run, split, GROUPS)):
        if len(group) < 2:
            raise Missing("groups of one image have no partners to attend to")
        records = [split.records[index] for index in group]
        pictures = [read_image(record.image) for record in records]
        probabilities, height, width = group_attention(model, pictures, size)
        probabilities, height, width = downsample(probabilities, height, width)
        data = budget.text(pack(probabilities))
        uris = [budget.data_uri(thumbnail(picture, SIDE)) for picture in pictures]
        if data is None or None in uris:
            continue
        label = shared_class(split, group)
        panels.append(
            {
                "title": run.classes[label],
                "name": f"attention-{number}",
                "pictures": [
                    {"uri": uri, "id": record.id, "width": picture.width, "height": picture.height}
                    for uri, record, picture in zip(uris, records, pictures, strict=True)
                ],
                "data": {
                    "height": height,
                    "width": width,
                    "start": object_position(run, records[0], label, height, width),
                    "values": data,
                },
            }
        )
    if not panels:
        raise Missing("the attention does not fit into the report")
    return {"panels": panels, "palette": heat_palette(64).reshape(-1).tolist()}


def downsample(probabilities: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Make the grid coarse enough for VALUES_PER_GROUP.

    Receivers of one coarse cell are averaged, senders summed, so that rows still add up to 1.
    probabilities (K, K, N, N), N = height * width -> (K, K, n, n), new height and width.
    """
    nodes = len(probabilities)
    positions = np.sqrt(VALUES_PER_GROUP / max(nodes * (nodes - 1), 1))
    if height * width <= positions:
        return probabilities, height, width
    shrink = np.sqrt(positions / (height * width))
    rows, columns = max(1, int(height * shrink)), max(1, int(width * shrink))
    cell = (np.arange(height) * rows // height)[:, None] * columns + (np.arange(width) * columns // width)[None, :]
    member = (np.arange(rows * columns)[:, None] == cell.reshape(1, -1)).astype(np.float32)  # (n, N)
    summed = probabilities @ member.T
    return (member / member.sum(axis=1, keepdims=True)) @ summed, rows, columns


def pack(probabilities: np.ndarray) -> str:
    """Quantise (K, K, N, N) to bytes and encode as base64, without the pairs of an image with itself.

    First come float32 (pairs, N, 2), lowest and highest value of each row as multiples of the even share 1/N, then
    uint8 (pairs, N, N), each row stretched between the two. Pairs run receiver by receiver.
    """
    nodes, positions = probabilities.shape[0], probabilities.shape[-1]
    pairs = [(i, j) for i in range(nodes) for j in range(nodes) if i != j]
    values = np.stack([probabilities[i, j] for i, j in pairs]).astype(np.float64) * positions
    low, high = values.min(axis=-1), values.max(axis=-1)
    span = np.where(high > low, high - low, 1.0)
    levels = (255 * (values - low[..., None]) / span[..., None]).round().astype(np.uint8)
    ranges = np.stack([low, high], axis=-1).astype("<f4")
    return base64.b64encode(ranges.tobytes() + levels.tobytes()).decode("ascii")


def object_position(run: RunFolder, record: Any, label: int, height: int, width: int) -> int:
    """The grid position that lies deepest in an object of class `label`.

    From the mask when there is one, else from the ensembled map, else the centre.
    """
    share = None
    try:
        share = (run.truth(record) == label + 1).astype(np.float32)
    except Missing:
        try:
            share = run.maps(record).of_class("ensemble", label)
        except Missing:
            share = None
    if share is None or not share.any():
        return (height // 2) * width + width // 2
    cells = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BOX), dtype=np.float64)
    padded = np.pad(cells, 1)
    around = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return int(np.argmax(cells + 0.1 * around))
