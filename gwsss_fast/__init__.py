"""Group-wise learning for weakly supervised semantic segmentation and object localisation."""

__version__ = "0.1.0"
