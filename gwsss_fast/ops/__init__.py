"""The operations of the method as `torch.library` operators, each with several backends.

`ops.backend(name)` forces one, `ops.available()` says which can be used here and why others cannot.
"""

from gwsss_fast.ops.attention import attention
from gwsss_fast.ops.co_attention import REVERSES, co_attention
from gwsss_fast.ops.conv_gru import conv_gru
from gwsss_fast.ops.dense_crf import dense_crf, dense_crf_images
from gwsss_fast.ops.dispatch import BACKENDS, available, backend
from gwsss_fast.ops.edge_readout import edge_readout
from gwsss_fast.ops.graph_dropout import graph_dropout
from gwsss_fast.reference import edge_scores

__all__ = [
    "BACKENDS",
    "REVERSES",
    "attention",
    "available",
    "backend",
    "co_attention",
    "conv_gru",
    "dense_crf",
    "dense_crf_images",
    "edge_readout",
    "edge_scores",
    "graph_dropout",
]
