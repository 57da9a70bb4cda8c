"""What keeps a training whole when a step goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gwsss_fast import distributed
from gwsss_fast.errors import GwsssError

NAMED = 8  # images of a skipped step that a message names, at most
_NO_MEMORY = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")
"""What the driver, cuBLAS and cuDNN, and a CPU say."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


@torch.no_grad()
def own_gradients(model: nn.Module) -> None:
    """Move the gradients to memory of their own: the next replay of a CUDA graph takes that of the last one back."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


class Skips:
    """Counts the steps whose loss or gradient was not finite. limit: so many are skipped, the next one stops."""

    def __init__(self, stage: str, limit: int) -> None:
        self.stage, self.limit, self.count = stage, limit, 0

    def note(
        self, step: int, loss: float, images: list[str], innocent: bool, tell: Callable[[str], None], advice: str
    ) -> None:
        """Count `step` and tell of it; all processes call this. innocent: this process's loss was finite.

        Raises GwsssError after the limit, with the images of the batch.
        """
        self.count += 1
        found = distributed.gather((innocent, images))
        guilty = [name for fine, names in found if not fine for name in names]
        names = guilty or [name for _, own in found for name in own]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        what = f"the loss is {loss}" if loss != loss or abs(loss) == float("inf") else "the gradient is not finite"
        where = f" (images {', '.join(names[:NAMED])}{more})" if names else ""
        if self.count > self.limit:
            skipped = f", after {self.limit} such steps were skipped" if self.limit else ""
            raise GwsssError(f"{self.stage}: {what} at step {step}{where}{skipped}; {advice}")
        tell(f"{self.stage}: {what} at step {step}{where}: skipped, {self.count} of at most {self.limit}")


class Statistics:
    """The running statistics of trained batch norm: a forward pass changes them before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        self.live: list[Tensor] = [
            value
            for layer in model.modules()
            if isinstance(layer, _BatchNorm) and layer.training
            for value in layer.buffers(recurse=False)
        ]
        self.keep()

    def keep(self) -> None:
        """Remember them as they are now."""
        self.kept = [value.clone() for value in self.live]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for live, kept in zip(self.live, self.kept, strict=True):
            live.copy_(kept)
