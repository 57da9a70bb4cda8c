"""Group-wise learning for weakly supervised semantic segmentation and object localisation."""

from typing import TYPE_CHECKING, Any

from gwsss_fast import evaluation, ops
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupGNN, GroupOutput
from gwsss_fast.losses import group_loss
from gwsss_fast.models.group_classifier import GroupClassifier

if TYPE_CHECKING:
    from gwsss_fast.inference.predictor import Predictor
    from gwsss_fast.models.deeplab import DeepLabV2

__version__ = "0.1.0"
__all__ = [
    "DeepLabV2",
    "GroupClassifier",
    "GroupGNN",
    "GroupOutput",
    "GwsssError",
    "Predictor",
    "evaluation",
    "group_loss",
    "ops",
]


def __getattr__(name: str) -> Any:
    """DeepLabV2 and Predictor on first use: torchvision, which they need, takes as long to import as all the rest."""
    if name == "DeepLabV2":
        from gwsss_fast.models.deeplab import DeepLabV2

        return DeepLabV2
    if name == "Predictor":
        from gwsss_fast.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
