"""Group-wise learning for weakly supervised semantic segmentation and object localisation."""

from gwsss_fast import ops
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupGNN, GroupOutput
from gwsss_fast.losses import group_loss

__version__ = "0.1.0"
__all__ = ["GroupGNN", "GroupOutput", "GwsssError", "group_loss", "ops"]
