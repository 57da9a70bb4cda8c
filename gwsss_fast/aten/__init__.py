"""Operations composed of PyTorch calls but arranged for speed: the algebra of the fast path on any device."""

from gwsss_fast.aten.edge_readout import edge_readout, edge_readout_backward

__all__ = ["edge_readout", "edge_readout_backward"]
