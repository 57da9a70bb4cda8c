"""Messages between the images of a group, Eq. 5, 7 and 8: m_i = sum over j != i of softmax_rows(E_ij) g_j."""

import torch
from torch import Tensor

from gwsss_fast.reference.attention import attention, attention_backward
from gwsss_fast.reference.precision import accumulate


def sides(p: Tensor, q: Tensor, receiver: int, sender: int, reverse: str) -> tuple[Tensor, Tensor]:
    """The two factors (B, N, D) whose product is E_ij for i = receiver, j = sender.

    "transpose": E_ij = p_i q_j^T for i < j and E_ji = E_ij^T (text under Eq. 4), so a receiver with the larger index
    uses q on its own side. "directed": always p on the receiver and q on the sender.
    """
    if reverse == "directed" or receiver < sender:
        return p[:, receiver], q[:, sender]
    return q[:, receiver], p[:, sender]


def edge_scores(p: Tensor, q: Tensor, receiver: int, sender: int, reverse: str = "transpose") -> Tensor:
    """E_ij (B, N, N), rows over the receiver's positions, columns over the sender's."""
    left, right = sides(p, q, receiver, sender, reverse)
    return accumulate(left) @ accumulate(right).transpose(-1, -2)


def co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str = "transpose") -> tuple[Tensor, Tensor]:
    """p, q: (B, K, N, D); g: (B, K, N, C). Returns messages (B, K, N, C) and row log-sum-exps (B, K, K, N).

    The statistics are indexed [receiver, sender]; their diagonal is zero and unused.
    """
    groups, nodes, positions, _ = g.shape
    wide = accumulate(g)
    messages = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    row_lse = wide.new_zeros(groups, nodes, nodes, positions)
    for i in range(nodes):
        for j in range(nodes):
            if i == j:
                continue
            left, right = sides(p, q, i, j, reverse)
            message, row_lse[:, i, j] = attention(accumulate(left), accumulate(right), wide[:, j])
            messages[:, i] += message
    return messages.to(g.dtype), row_lse


def co_attention_backward(
    grad: Tensor, p: Tensor, q: Tensor, g: Tensor, row_lse: Tensor, reverse: str = "transpose"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of p, q and g: the sum of every edge's attention gradients."""
    grad, wide_p, wide_q, wide_g = (accumulate(x) for x in (grad, p, q, g))
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (wide_p, wide_q, wide_g)]
    nodes = g.shape[1]
    for i in range(nodes):
        for j in range(nodes):
            if i == j:
                continue
            left, right = sides(wide_p, wide_q, i, j, reverse)
            grad_left, grad_right = sides(grads[0], grads[1], i, j, reverse)
            edge = attention_backward(grad[:, i], left, right, wide_g[:, j], row_lse[:, i, j])
            grad_left += edge[0]
            grad_right += edge[1]
            grads[2][:, j] += edge[2]
    return grads[0].to(p.dtype), grads[1].to(q.dtype), grads[2].to(g.dtype)
