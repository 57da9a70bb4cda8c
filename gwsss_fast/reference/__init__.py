"""Every operation in plain PyTorch, readable beside the paper; any floating dtype.

Scores and softmaxes of 16-bit inputs are computed in float32 (`accumulate`), so they do not overflow. Each file holds
the forward formula and its hand-derived gradient, because an operator's kernel runs below autograd.
"""

from gwsss_fast.reference.attention import attention, attention_backward
from gwsss_fast.reference.co_attention import co_attention, co_attention_backward, edge_scores
from gwsss_fast.reference.conv_gru import conv_gru, conv_gru_backward
from gwsss_fast.reference.dense_crf import dense_crf, dense_crf_backward
from gwsss_fast.reference.edge_readout import edge_readout, edge_readout_backward
from gwsss_fast.reference.graph_dropout import graph_dropout, graph_dropout_backward

__all__ = [
    "attention",
    "attention_backward",
    "co_attention",
    "co_attention_backward",
    "conv_gru",
    "conv_gru_backward",
    "dense_crf",
    "dense_crf_backward",
    "edge_readout",
    "edge_readout_backward",
    "edge_scores",
    "graph_dropout",
    "graph_dropout_backward",
]
