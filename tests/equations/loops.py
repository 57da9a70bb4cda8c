"""Every equation of the paper as plain Python loops over images, positions and channels, in float64.

Nothing here uses torch or a matrix product of a library: the point is to have a second, slow and obvious computation
beside the fast one. Arrays at the boundary are NumPy float64; inside, matrices are lists of rows.
Shapes follow the package: B groups, K nodes (images) a group, N positions, C channels, D reduced channels, L classes.
"""

import math

import numpy as np

Matrix = list[list[float]]


# Matrices as lists of rows


def matmul(a: Matrix, b: Matrix) -> Matrix:
    out = []
    for row in a:
        out.append([0.0] * len(b[0]))
        for x, b_row in zip(row, b, strict=True):
            for column, y in enumerate(b_row):
                out[-1][column] += x * y
    return out


def transpose(a: Matrix) -> Matrix:
    return [[row[column] for row in a] for column in range(len(a[0]))]


def add(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(row, other, strict=True)] for row, other in zip(a, b, strict=True)]


def softmax_rows(a: Matrix) -> Matrix:
    out = []
    for row in a:
        largest = max(row)
        exponentials = [math.exp(x - largest) for x in row]
        total = math.fsum(exponentials)
        out.append([x / total for x in exponentials])
    return out


def column_means(a: Matrix) -> list[float]:
    return [math.fsum(row[column] for row in a) / len(a) for column in range(len(a[0]))]


def concatenate(a: Matrix, b: Matrix) -> Matrix:
    """[a, b] along the channels."""
    return [row + other for row, other in zip(a, b, strict=True)]


def sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


# Eq. 4, 5, 7 and the sum of Eq. 8


def cross_edge(p: list[Matrix], q: list[Matrix], i: int, j: int, reverse: str) -> Matrix:
    """E_ij, the scores with which receiver i (rows) reads from sender j (columns); p = g P and q = g Q."""
    if reverse == "directed" or i < j:
        return matmul(p[i], transpose(q[j]))  # Eq. 5
    return transpose(matmul(p[j], transpose(q[i])))  # below Eq. 4: e_ji is e_ij transposed


def co_attention(p: np.ndarray, q: np.ndarray, g: np.ndarray, reverse: str = "transpose") -> np.ndarray:
    """Sum over j != i of softmax_rows(E_ij) g_j. (B,K,N,D), (B,K,N,D), (B,K,N,C) -> (B,K,N,C)."""
    out = np.zeros_like(g)
    for b in range(g.shape[0]):
        p_b, q_b, g_b = p[b].tolist(), q[b].tolist(), g[b].tolist()
        for i in range(g.shape[1]):
            for j in range(g.shape[1]):
                if i != j:
                    out[b, i] += matmul(softmax_rows(cross_edge(p_b, q_b, i, j, reverse)), g_b[j])
    return out


# Eq. 6


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax_rows(q k^T) v for each leading index, without scale and without the residual of Eq. 6."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for index in np.ndindex(q.shape[:-2]):
        scores = matmul(q[index].tolist(), transpose(k[index].tolist()))
        out[index] = matmul(softmax_rows(scores), v[index].tolist())
    return out


# Eq. 2 as a ConvGRU


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Zero-padded convolution of (M,C,H,W) with (O,C,k,k), k odd, same size out; not flipped (cross-correlation)."""
    images, channels, height, width = x.shape
    kernel = weight.shape[-1]
    x_list, w_list = x.tolist(), weight.tolist()
    out = np.zeros((images, weight.shape[0], height, width))
    for image, o, row, column in np.ndindex(out.shape):
        total = float(bias[o])
        for dy in range(kernel):
            for dx in range(kernel):
                y, x_ = row + dy - kernel // 2, column + dx - kernel // 2
                if 0 <= y < height and 0 <= x_ < width:
                    for c in range(channels):
                        total += w_list[o][c][dy][dx] * x_list[image][c][y][x_]
        out[image, o, row, column] = total
    return out


def conv_gru(m: np.ndarray, h: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """h' = (1 - z) h + z c. m, h (M,C,H,W); weight (3C,2C,k,k) as [update, reset, candidate]; bias (3C,)."""
    channels = h.shape[1]
    update, reset, candidate = (slice(n * channels, (n + 1) * channels) for n in range(3))
    z = conv2d(np.concatenate([m, h], axis=1), weight[update], bias[update])
    r = conv2d(np.concatenate([m, h], axis=1), weight[reset], bias[reset])
    gated = np.zeros_like(h)
    for index in np.ndindex(h.shape):
        gated[index] = sigmoid(float(r[index])) * h[index]
    c = conv2d(np.concatenate([m, gated], axis=1), weight[candidate], bias[candidate])
    out = np.zeros_like(h)
    for index in np.ndindex(h.shape):
        gate = sigmoid(float(z[index]))
        out[index] = (1.0 - gate) * h[index] + gate * math.tanh(c[index])
    return out


# Eq. 11, 12


def dropout_mask(o: list[float], r: float, drop_rate: float, drop_threshold: float) -> list[float]:
    """s of Eq. 11 for one map of channel means."""
    if r < drop_rate:
        return [sigmoid(x) for x in o]
    limit = max(o) * drop_threshold
    return [x if x < limit else 0.0 for x in o]


def graph_dropout(g: np.ndarray, r: np.ndarray, drop_rate: float, drop_threshold: float) -> np.ndarray:
    """g s, with one random number r[b] a group. (B,K,N,C), (B,) -> (B,K,N,C)."""
    out = np.zeros_like(g)
    for b in range(g.shape[0]):
        for i in range(g.shape[1]):
            o = [math.fsum(position) / len(position) for position in g[b, i].tolist()]
            s = dropout_mask(o, float(r[b]), drop_rate, drop_threshold)
            for n in range(g.shape[2]):
                for c in range(g.shape[3]):
                    out[b, i, n, c] = g[b, i, n, c] * s[n]
    return out


# Eq. 14-17


def position_attention(x: Matrix) -> tuple[Matrix, Matrix]:
    """u (N,N) of Eq. 14 and p (N,2C) of Eq. 15."""
    u = softmax_rows(matmul(x, transpose(x)))
    return u, add(matmul(u, x), x)


def channel_attention(x: Matrix) -> tuple[Matrix, Matrix]:
    """v (2C,2C) of Eq. 16 and c (N,2C) of Eq. 17, as x v^T + x: each output channel a convex combination."""
    v = softmax_rows(matmul(transpose(x), x))
    return v, add(matmul(x, transpose(v)), x)


def edge_features(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p and c at every position, the long way: two arrays (B,K,K,N,2C)."""
    groups, nodes, positions, channels = g.shape
    p = np.zeros((groups, nodes, nodes, positions, 2 * channels))
    c = np.zeros_like(p)
    for b in range(groups):
        for i in range(nodes):
            for j in range(nodes):
                x = concatenate(g[b, i].tolist(), g[b, j].tolist())
                p[b, i, j] = position_attention(x)[1]
                c[b, i, j] = channel_attention(x)[1]
    return p, c


def position_means(maps: np.ndarray) -> np.ndarray:
    """Mean over N of (..., N, C)."""
    out = np.zeros((*maps.shape[:-2], maps.shape[-1]))
    for index in np.ndindex(maps.shape[:-2]):
        out[index] = column_means(maps[index].tolist())
    return out


def edge_readout(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the positions of p and c: (B,K,N,C) -> two arrays (B,K,K,2C)."""
    p, c = edge_features(g)
    return position_means(p), position_means(c)


# Eq. 9, 10 and the ensembled map


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """A 1x1 convolution on channels last: (..., N, C_in), weight (C_out, C_in) -> (..., N, C_out)."""
    out = np.zeros((*x.shape[:-1], weight.shape[0]))
    columns = transpose(weight.tolist())
    for index in np.ndindex(x.shape[:-2]):
        out[index] = matmul(x[index].tolist(), columns)
    if bias is not None:
        for o in range(weight.shape[0]):
            out[..., o] += float(bias[o])
    return out


def normalised_maps(maps: np.ndarray) -> np.ndarray:
    """(..., H, W) -> ReLU, then each map divided by its own maximum; a map without a positive value is zero."""
    out = np.zeros_like(maps)
    for index in np.ndindex(maps.shape[:-2]):
        largest = max(0.0, max(max(row) for row in maps[index].tolist()))
        for y, x in np.ndindex(maps.shape[-2:]):
            if largest > 0:
                out[index][y, x] = max(0.0, float(maps[index][y, x])) / largest
    return out


def ensembled_maps(maps: np.ndarray, initial_maps: np.ndarray) -> np.ndarray:
    first, second = normalised_maps(maps), normalised_maps(initial_maps)
    out = np.zeros_like(maps)
    for index in np.ndindex(maps.shape):
        out[index] = (first[index] + second[index]) / 2
    return out


# Eq. 13


def soft_margin(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum over the classes of the binary cross-entropies of one node or edge, written out with probabilities."""
    terms = []
    for x, y in zip(logits.tolist(), targets.tolist(), strict=True):
        terms.append(-math.log(sigmoid(x)) if y == 1 else -math.log(sigmoid(-x)))
    return math.fsum(terms)


def group_loss(
    logits: np.ndarray,
    initial_logits: np.ndarray,
    edge_logits: np.ndarray | None,
    labels: np.ndarray,
    weights: tuple[float, float, float],
    reduction: str = "mean",
) -> float:
    """Eq. 13, averaged over groups: logits (B,K,L), edge logits (B,K,K,L), labels (B,K,L) in {0, 1}.

    "sum" takes the sums of Eq. 13 over nodes, edges and classes; "mean" divides each by its number of terms.
    """
    groups, nodes, classes = labels.shape
    final, initial, edge = 0.0, 0.0, 0.0
    for b in range(groups):
        for i in range(nodes):
            final += soft_margin(logits[b, i], labels[b, i])
            initial += soft_margin(initial_logits[b, i], labels[b, i])
            for j in range(nodes):
                if edge_logits is not None:
                    pairs = zip(labels[b, i], labels[b, j], strict=True)
                    shared = np.array([1.0 if x == 1 and y == 1 else 0.0 for x, y in pairs])
                    edge += soft_margin(edge_logits[b, i, j], shared)
    if reduction == "mean":
        final, initial = final / (nodes * classes), initial / (nodes * classes)
        edge /= nodes * nodes * classes
    return (weights[0] * final + weights[1] * initial + weights[2] * edge) / groups
