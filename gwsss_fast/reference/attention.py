"""Self-attention without a scale (Eq. 6), and what is added to it: softmax(q k^T) v + residual + scale * message."""

import torch
from torch import Tensor

from gwsss_fast.reference.precision import accumulate


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    message: Tensor | None = None,
    message_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """softmax_rows(q k^T) v + residual + message_scale * message. q, k: (..., N, D); v and the others: (..., N, C).

    Returns the output (..., N, C) in v's dtype and the rows' log-sum-exp (..., N), which a backward pass can use to
    rebuild the probabilities.
    """
    scores = accumulate(q) @ accumulate(k).transpose(-1, -2)
    row_lse = scores.logsumexp(-1)
    out = torch.exp(scores - row_lse.unsqueeze(-1)) @ accumulate(v)
    if residual is not None:
        out = out + residual
    if message is not None:
        out = out + message_scale * accumulate(message)
    return out.to(v.dtype), row_lse


def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; those of the addends are the gradient itself.

    With P the weights and dP = grad v^T: dS = P (dP - rowsum(P dP)).
    """
    grad, wide_q, wide_k, wide_v = (accumulate(x) for x in (grad, q, k, v))
    weights = torch.exp(wide_q @ wide_k.transpose(-1, -2) - row_lse.unsqueeze(-1))
    grad_weights = grad @ wide_v.transpose(-1, -2)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_q = grad_scores @ wide_k
    grad_k = grad_scores.transpose(-1, -2) @ wide_q
    grad_v = weights.transpose(-1, -2) @ grad
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
