"""The whole module, Eq. 4-17 in sequence, put together from the loops of each equation."""

import math
from dataclasses import dataclass

import numpy as np
from loops import attention, co_attention, conv_gru, edge_features, graph_dropout, linear, position_means

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Options:
    """The paper's choices; a temperature stands for cosine scores, r = None for no dropout."""

    steps: int = 3
    reverse: str = "transpose"
    aggregate: str = "sum"
    temperature: float | None = None
    self_edge: bool = True
    r: float | None = None
    drop_rate: float = 0.8
    drop_threshold: float = 0.7
    keep_scale: bool = False
    centred: bool = False
    matched_nodes: bool = False


def to_positions(x: np.ndarray) -> np.ndarray:
    """(B,K,C,H,W) -> (B,K,N,C), positions row by row."""
    groups, nodes, channels, height, width = x.shape
    out = np.zeros((groups, nodes, height * width, channels))
    for b, i, c, y, z in np.ndindex(x.shape):
        out[b, i, y * width + z, c] = x[b, i, c, y, z]
    return out


def to_maps(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B,K,N,C) -> (B,K,C,H,W)."""
    groups, nodes, _, channels = x.shape
    out = np.zeros((groups, nodes, channels, height, width))
    for b, i, n, c in np.ndindex(x.shape):
        out[b, i, c, n // width, n % width] = x[b, i, n, c]
    return out


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Every position's vector divided by its length."""
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape[:-1]):
        length = math.sqrt(math.fsum(value * value for value in x[index].tolist()))
        out[index] = [value / length for value in x[index].tolist()]
    return out


def root_mean_square(node: np.ndarray) -> float:
    """Of all numbers of one node (N,C)."""
    squares = [value * value for position in node.tolist() for value in position]
    return math.sqrt(math.fsum(squares) / len(squares))


def less_group_mean(x: np.ndarray) -> np.ndarray:
    """(B,K,N,D) less the mean over all nodes and positions of its group."""
    out = np.zeros_like(x)
    for b, i, n, d in np.ndindex(x.shape):
        out[b, i, n, d] = x[b, i, n, d] - math.fsum(x[b, :, :, d].ravel().tolist()) / x[b, :, :, d].size
    return out


def scored(receiver: np.ndarray, sender: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the scores: as they are, or for cosine scores of unit length with the temperature on one side."""
    if options.temperature is None:
        return receiver, sender
    if options.centred:
        receiver, sender = less_group_mean(receiver), less_group_mean(sender)
    return options.temperature * unit_rows(receiver), unit_rows(sender)


def message(g: np.ndarray, weights: Weights, options: Options) -> np.ndarray:
    """m of Eq. 8 from g (B,K,N,C)."""
    p, q = linear(g, weights["co_attention.p.weight"]), linear(g, weights["co_attention.q.weight"])
    received = co_attention(*scored(p, q, options), g, options.reverse)
    if options.aggregate == "mean" and g.shape[1] > 1:
        received = received / (g.shape[1] - 1)
    if not options.self_edge:
        return received
    query, key, value = (
        linear(g, weights[f"self_edge.{name}.weight"], weights[f"self_edge.{name}.bias"]) for name in ("f", "k", "h")
    )
    return received + attention(*scored(query, key, options), value) + g  # Eq. 6 with its residual


def dropped(g: np.ndarray, options: Options) -> np.ndarray:
    """Eq. 11, 12 with the same r for all groups; optionally each node is brought back to its root mean square."""
    assert options.r is not None
    out = graph_dropout(g, np.full(g.shape[0], options.r), options.drop_rate, options.drop_threshold)
    if options.keep_scale:
        for b in range(g.shape[0]):
            for i in range(g.shape[1]):
                if out[b, i].any():
                    out[b, i] *= root_mean_square(g[b, i]) / root_mean_square(out[b, i])
    return out


def group_reasoning(features: np.ndarray, weights: Weights, options: Options) -> np.ndarray:
    """g^T from g^0, both (B,K,C,H,W); dropout follows every step but the last."""
    groups, nodes, channels, height, width = features.shape
    flat = (groups * nodes, channels, height, width)
    sizes = np.ones((groups, nodes, 1, 1, 1))
    if options.matched_nodes:
        for b, i in np.ndindex(groups, nodes):
            sizes[b, i] = 4 * root_mean_square(to_positions(features)[b, i])
    state = features / sizes
    for step in range(options.steps):
        m = to_maps(message(to_positions(state), weights, options), height, width)
        state = conv_gru(m.reshape(flat), state.reshape(flat), weights["update.weight"], weights["update.bias"])
        state = state.reshape(features.shape)
        if options.r is not None and step < options.steps - 1:
            state = to_maps(dropped(to_positions(state), options), height, width)
    return state * sizes


def readout(g: np.ndarray, weights: Weights, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 9, 10: class maps (..., N, L) and their averages over the positions (..., L)."""
    maps = linear(g, weights[f"{name}.weight"], weights[f"{name}.bias"])
    return maps, position_means(maps)


def edge_logits(g: np.ndarray, weights: Weights) -> np.ndarray:
    """Eq. 14-17 the long way, at every position: (B,K,N,C) -> (B,K,K,L)."""
    p, c = edge_features(g)
    fused = linear(p, weights["edges.position.weight"], weights["edges.position.bias"])
    fused = fused + linear(c, weights["edges.channel.weight"], weights["edges.channel.bias"])
    return readout(fused, weights, "edges.readout")[1]


def group_gnn(features: np.ndarray, weights: Weights, options: Options) -> dict[str, np.ndarray]:
    """Every output of the module for features (B,K,C,H,W)."""
    height, width = features.shape[-2:]
    final = group_reasoning(features, weights, options)
    maps, logits = readout(to_positions(final), weights, "readout")
    initial_maps, initial_logits = readout(to_positions(features), weights, "initial_readout")
    return {
        "logits": logits,
        "initial_logits": initial_logits,
        "edge_logits": edge_logits(to_positions(final), weights),
        "maps": to_maps(maps, height, width),
        "initial_maps": to_maps(initial_maps, height, width),
        "features": final,
    }
