"""Operations composed of PyTorch calls but arranged for speed: the algebra of the fast path on any device."""

from gwsss_fast.aten.conv_gru import conv_gru, conv_gru_backward
from gwsss_fast.aten.conv_gru import refuse as refuse_conv_gru
from gwsss_fast.aten.edge_readout import edge_readout, edge_readout_backward

__all__ = ["conv_gru", "conv_gru_backward", "edge_readout", "edge_readout_backward", "refuse_conv_gru"]
