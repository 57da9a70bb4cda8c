"""Self-attention without a scale, the inner part of Eq. 6: softmax(q k^T) v."""

import torch
from torch import Tensor

from gwsss_fast.reference.precision import accumulate


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax_rows(q k^T) v. q, k: (..., N, D); v: (..., N, C).

    Returns the output (..., N, C) in v's dtype and the rows' log-sum-exp (..., N), which a backward pass can use to
    rebuild the probabilities.
    """
    scores = accumulate(q) @ accumulate(k).transpose(-1, -2)
    row_lse = scores.logsumexp(-1)
    weights = torch.exp(scores - row_lse.unsqueeze(-1))
    return (weights @ accumulate(v)).to(v.dtype), row_lse


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, row_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. With P the weights and dP = grad v^T: dS = P (dP - rowsum(P dP))."""
    grad, wide_q, wide_k, wide_v = (accumulate(x) for x in (grad, q, k, v))
    weights = torch.exp(wide_q @ wide_k.transpose(-1, -2) - row_lse.unsqueeze(-1))
    grad_weights = grad @ wide_v.transpose(-1, -2)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_q = grad_scores @ wide_k
    grad_k = grad_scores.transpose(-1, -2) @ wide_q
    grad_v = weights.transpose(-1, -2) @ grad
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
