// Passes over pixels: messages are sliced from the lattices, the pixels updated and splatted again, a tile of them at a
// time, so that marginals need not go through memory between two updates. Each loop does one thing for all pixels of a
// tile: they are independent, and the processor works on several at once.

#include "table.h"
#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr float kSmallest = 1e-5f;  // the unary energy of a label is never above -log of this
constexpr float kNever = -1e30f;    // unary of the padding after the last label

// Where value `at` of a row of W values lies, of rows whose planes from `rows` on have `count` rows.
template <int W, class T>
inline T* place(T* rows, int64_t count, int64_t row, int at) {
  constexpr int first = W < kPlane ? 8 : kPlane, second = W - kPlane < kPlane ? 8 : kPlane;
  return at < kPlane ? rows + row * first + at : rows + count * kPlane + row * second + (at - kPlane);
}

// to = from + messages from a lattice whose simplices have S corners, for W labels of `count` pixels.
template <int W, int S>
inline void slice(const Edges& edges, int64_t first, int64_t count, const float* vertex, int64_t pitch,
                  const float* from, float* to) {
  const int32_t* corner = edges.corner + first * S;
  const float* weight = edges.weight + first * S;
  for (int64_t i = 0; i < count; ++i, corner += S, weight += S) {
    Row<W> row = Row<W>::read(from + i * pitch);
#pragma GCC unroll 6
    for (int c = 0; c < S; ++c)
      row.each([&](auto& v, auto lanes, int at) {
        v += weight[c] * load<lanes>(place<W>(vertex, edges.vertices, corner[c], at));
      });
    row.write(to + i * pitch);
  }
}

// Adds W labels of `count` pixels to the rows of their strip.
template <int W, int S>
inline void splat(const Edges& edges, int64_t first, int64_t count, float* strip_row, int64_t pitch,
                  const float* from) {
  const int32_t* corner = edges.strip_corner + first * S;
  const float* weight = edges.weight + first * S;
  for (int64_t i = 0; i < count; ++i, corner += S, weight += S) {
    Row<W> row = Row<W>::read(from + i * pitch);
#pragma GCC unroll 6
    for (int c = 0; c < S; ++c)
      row.each([&](auto& v, auto lanes, int at) {
        float* to = place<W>(strip_row, edges.strip_rows, corner[c], at);
        store(to, load<lanes>(to) + weight[c] * v);
      });
  }
}

// Calls f(integral_constant W, offset, plane) for a row's labels, two planes at a time.
template <class F>
inline void for_labels(int64_t pitch, F&& f) {
  int64_t at = 0;
  for (; pitch - at > 32; at += 32) f(std::integral_constant<int, 32>(), at, at / kPlane);
  switch (pitch - at) {
    case 8: return f(std::integral_constant<int, 8>(), at, at / kPlane);
    case 16: return f(std::integral_constant<int, 16>(), at, at / kPlane);
    case 24: return f(std::integral_constant<int, 24>(), at, at / kPlane);
    default: return f(std::integral_constant<int, 32>(), at, at / kPlane);
  }
}

// rows = start + messages from all lattices, or a copy without any.
void slice_tile(const PixelPass& pass, int64_t first, int64_t count, const float* start, float* rows) {
  const float* from = start;
  for (int k = 0; k < pass.kernels; ++k) {
    const Edges& edges = pass.edges[k];
    if (edges.vertex == nullptr) continue;
    for_labels(pass.pitch, [&](auto width, int64_t at, int64_t plane) {
      const float* vertex = edges.vertex + plane * kPlane * edges.vertices;
      if (edges.size == 3)
        slice<width, 3>(edges, first, count, vertex, pass.pitch, from + at, rows + at);
      else
        slice<width, 6>(edges, first, count, vertex, pass.pitch, from + at, rows + at);
    });
    from = rows;
  }
  if (from != rows) std::memcpy(rows, from, count * pass.pitch * sizeof(float));
}

void splat_tile(const PixelPass& pass, int64_t first, int64_t count, const float* rows) {
  for (int k = 0; k < pass.kernels; ++k) {
    const Edges& edges = pass.edges[k];
    if (edges.strip_row == nullptr) continue;
    for_labels(pass.pitch, [&](auto width, int64_t at, int64_t plane) {
      float* strip_row = edges.strip_row + plane * kPlane * edges.strip_rows;
      if (edges.size == 3)
        splat<width, 3>(edges, first, count, strip_row, pass.pitch, rows + at);
      else
        splat<width, 6>(edges, first, count, strip_row, pass.pitch, rows + at);
    });
  }
}

inline float row_sum(const float* row, int64_t pitch) {
  Vector<8> sum = load<8>(row);
  for (int64_t at = 8; at < pitch; at += 8) sum += load<8>(row + at);
  return sum_of<8>(sum);
}

inline float row_maximum(const float* row, int64_t pitch) {
  Vector<8> found = load<8>(row);
  for (int64_t at = 8; at < pitch; at += 8) found = larger<8>(found, load<8>(row + at));
  return max_of<8>(found);
}

inline void scale_row(const float* from, float factor, int64_t pitch, float* to) {
  for (int64_t at = 0; at < pitch; at += 8) store(to + at, load<8>(from + at) * factor);
}

// Softmax of every row of a tile, from `scores` to `to`. Scores are rarely so large that their maximum has to be taken
// off before the exponential.
void softmax_tile(const float* scores, int64_t count, int64_t pitch, float* to) {
  const int64_t values = count * pitch;
  for (int64_t at = 0; at < values; at += 8 < kNative ? kNative : 8) {
    if (kNative == 16 && values - at < 16) {
      store(to + at, exp_of<8>(load<8>(scores + at)));
      break;
    }
    store(to + at, exp_of<(8 < kNative ? kNative : 8)>(load<(8 < kNative ? kNative : 8)>(scores + at)));
  }
  for (int64_t i = 0; i < count; ++i) {
    float* row = to + i * pitch;
    float sum = row_sum(row, pitch);
    if (__builtin_expect(!(sum > 1e-20f && sum < 1e30f), 0)) {
      const float maximum = row_maximum(scores + i * pitch, pitch);
      for (int64_t at = 0; at < pitch; at += 8)
        store(row + at, exp_of<8>(load<8>(scores + i * pitch + at) - maximum));
      sum = row_sum(row, pitch);
    }
    scale_row(row, 1.0f / sum, pitch, row);
  }
}

// The labels of pixels at `count` places into rows.
void transpose_in(const PixelPass& pass, int64_t first, int64_t count, float* rows) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t label = pass.labels; label < pass.pitch; ++label) rows[i * pass.pitch + label] = 0;
  const int32_t* pixel = pass.order + first;
  for (int64_t label = 0; label < pass.labels; ++label)
    for (int64_t i = 0; i < count; ++i) rows[i * pass.pitch + label] = pass.input[label * pass.pixels + pixel[i]];
}

void transpose_out(const PixelPass& pass, int64_t first, int64_t count, const float* rows) {
  const int32_t* pixel = pass.order + first;
  for (int64_t label = 0; label < pass.labels; ++label)
    for (int64_t i = 0; i < count; ++i) pass.output[label * pass.pixels + pixel[i]] = rows[i * pass.pitch + label];
}

// unary = log(probabilities), clipped. Returns whether there is a NaN.
bool read_unary(const PixelPass& pass, int64_t first, int64_t count) {
  float* rows = pass.unary + first * pass.pitch;
  transpose_in(pass, first, count, rows);
  Integers<8> nan = {};
  for (int64_t at = 0; at < count * pass.pitch; at += 8) {
    auto p = load<8>(rows + at);
    nan |= p != p;
    p = larger<8>(p, Vector<8>{} + kSmallest);
    p = p > 1.0f ? Vector<8>{} + 1.0f : p;
    store(rows + at, log_of<8>(p));
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t label = pass.labels; label < pass.pitch; ++label) rows[i * pass.pitch + label] = kNever;
  int32_t any = 0;
  for (int i = 0; i < 8; ++i) any |= nan[i];
  return any != 0;
}

// Gradient of a softmax, in place: marginal * (gradient - their dot product).
inline void softmax_gradient(const float* marginal, int64_t pitch, float* gradient) {
  Vector<8> product = {};
  for (int64_t at = 0; at < pitch; at += 8) product += load<8>(marginal + at) * load<8>(gradient + at);
  const float sum = sum_of<8>(product);
  for (int64_t at = 0; at < pitch; at += 8)
    store(gradient + at, load<8>(marginal + at) * (load<8>(gradient + at) - sum));
}

}  // namespace

bool forward_pixels(const PixelPass& pass, int64_t begin, int64_t end, float* scratch) {
  bool nan = false;
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = end - first < kTile ? end - first : kTile;
    float* scores = scratch;
    float* rows = pass.marginal != nullptr ? pass.marginal + first * pass.pitch : scratch + kTile * pass.pitch;
    if (pass.input != nullptr) nan |= read_unary(pass, first, count);
    slice_tile(pass, first, count, pass.unary + first * pass.pitch, scores);
    softmax_tile(scores, count, pass.pitch, rows);
    splat_tile(pass, first, count, rows);
    if (pass.output != nullptr) transpose_out(pass, first, count, rows);
  }
  return nan;
}

void backward_pixels(const PixelPass& pass, int64_t begin, int64_t end, float* scratch) {
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = end - first < kTile ? end - first : kTile, values = count * pass.pitch;
    float* rows = scratch;
    float* total = pass.unary + first * pass.pitch;
    if (pass.input != nullptr) {
      transpose_in(pass, first, count, rows);
      std::memset(total, 0, values * sizeof(float));
    } else {
      std::memset(scratch + kTile * pass.pitch, 0, values * sizeof(float));
      slice_tile(pass, first, count, scratch + kTile * pass.pitch, rows);
    }
    for (int64_t i = 0; i < count; ++i)
      softmax_gradient(pass.marginal + (first + i) * pass.pitch, pass.pitch, rows + i * pass.pitch);
    for (int64_t at = 0; at < values; at += 8) store(total + at, load<8>(total + at) + load<8>(rows + at));
    splat_tile(pass, first, count, rows);
    if (pass.output != nullptr) transpose_out(pass, first, count, total);
  }
}

}  // namespace gwsss_fast::GWSSS_ISA
