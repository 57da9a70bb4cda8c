"""Modules around the operations: they own the parameters, their initialisation and their shapes."""

from gwsss_fast.layers.attention import SelfEdge
from gwsss_fast.layers.co_attention import CoAttention
from gwsss_fast.layers.conv_gru import ConvGRU
from gwsss_fast.layers.edge_readout import EdgeReadout
from gwsss_fast.layers.graph_dropout import GraphDropout

__all__ = ["CoAttention", "ConvGRU", "EdgeReadout", "GraphDropout", "SelfEdge"]
