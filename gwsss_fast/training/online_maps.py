"""Online accumulation of activation maps: the maximum over what each image showed while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gwsss_fast import distributed
from gwsss_fast.data.dataset import Split
from gwsss_fast.GroupGNN import GroupOutput, normalised


class OnlineMaps:
    """Per image of `split`, (2, n, h, w) float16: initial and graph maps of its n classes, maximum over all visits.

    They stay on the device of the training, which never waits for them: 25 MB for VOC, 0.8 GB for COCO at stride 8.
    Only meaningful when training shows whole images, neither cropped nor mirrored.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.maps: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, out: GroupOutput, indices: Tensor) -> None:
        """Add the maps of a training step; indices (B, K) into the split, on the CPU."""
        both = torch.stack([normalised(out.initial_maps.float()), normalised(out.maps.float())]).half()
        both = both.nan_to_num(0.0, 0.0, 0.0)  # of a step that will be skipped
        for group, row in enumerate(indices.tolist()):
            for node, index in enumerate(row):
                record = self.split.records[index]
                planes = both[:, group, node]  # by slices: a list of classes would have to be copied to the device
                new = torch.stack([planes[:, label] for label in record.labels], 1) if record.labels else planes[:, :0]
                old = self.maps.get(record.id)
                self.maps[record.id] = new.clone() if old is None else torch.maximum(old.to(new.device), new)

    def restore(self, maps: dict[str, Tensor]) -> None:
        """Take over what a checkpoint holds."""
        self.maps = dict(maps)

    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps, in process 0, which writes it: the maximum over all processes."""
        merged: dict[str, Tensor] = {}
        own = {name: maps.cpu() for name, maps in self.maps.items()}
        for maps in distributed.exchange([own, *({} for _ in range(1, distributed.size()))]):
            for name, new in maps.items():
                merged[name] = torch.maximum(merged[name], new) if name in merged else new
        return {"online_maps": merged}
