// Passes over pixels: messages are sliced from the lattices, the pixels updated and splatted again, a tile of them at a
// time, so that marginals need not go through memory between two updates. Each loop does one thing for all pixels of a
// tile: they are independent, and the processor works on several at once.

#include "table.h"
#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr float kSmallest = 1e-5f;  // the unary energy of a label is never above -log of this
constexpr float kNever = -1e30f;    // unary of the padding after the last label

// row += messages to the pixel at `place`, from a lattice whose simplices have S corners.
template <int W, int S>
inline void slice(const Edges& edges, int64_t place, const float* vertex, Row<W>& row) {
  const int32_t* corner = edges.corner + place * S;
  const float* weight = edges.weight + place * S;
  for (int c = 0; c < S; ++c) prefetch<W>(vertex + int64_t{W} * corner[kAhead * S + c]);
#pragma GCC unroll 6
  for (int c = 0; c < S; ++c) row.add(weight[c], vertex + int64_t{W} * corner[c]);
}

// Adds the row of the pixel at `place` to the rows of its strip.
template <int W, int S>
inline void splat(const Edges& edges, int64_t place, float* strip_row, Row<W>& row) {
  const int32_t* corner = edges.strip_corner + place * S;
  const float* weight = edges.weight + place * S;
#pragma GCC unroll 6
  for (int c = 0; c < S; ++c) {
    float* to = strip_row + int64_t{W} * corner[c];
    row.each([&](auto& v, auto lanes, int at) { store(to + at, load<lanes>(to + at) + weight[c] * v); });
  }
}

// Calls f(pixel's number in the tile, corners of the first kernel, of the second) for every pixel; 0 stands for none.
template <class F>
inline void for_kernels(const PixelPass& pass, int64_t count, F&& f) {
  constexpr std::integral_constant<int, 0> none;
  constexpr std::integral_constant<int, 3> positions;
  constexpr std::integral_constant<int, 6> colours;
  if (pass.kernels == 0) return;
  if (pass.kernels == 2)
    for (int64_t i = 0; i < count; ++i) f(i, positions, colours);
  else if (pass.edges[0].size == 3)
    for (int64_t i = 0; i < count; ++i) f(i, positions, none);
  else
    for (int64_t i = 0; i < count; ++i) f(i, colours, none);
}

// rows = start + messages from all lattices.
void slice_tile(const PixelPass& pass, int64_t first, int64_t count, const float* start, float* rows) {
  for_planes(pass.pitch, [&](auto width, int64_t at) {
    const float* vertex[2];
    for (int k = 0; k < pass.kernels; ++k) vertex[k] = pass.edges[k].vertex + at * pass.edges[k].vertices;
    for_kernels(pass, count, [&](int64_t i, auto one, auto other) {
      Row<width> row = Row<width>::read(start + i * pass.pitch + at);
      slice<width, one>(pass.edges[0], first + i, vertex[0], row);
      if constexpr (other > 0) slice<width, other>(pass.edges[1], first + i, vertex[1], row);
      row.write(rows + i * pass.pitch + at);
    });
  });
}

// Adds rows to the lattices that take strips' rows.
void splat_tile(const PixelPass& pass, int64_t first, int64_t count, const float* rows) {
  for_planes(pass.pitch, [&](auto width, int64_t at) {
    for (int k = 0; k < pass.kernels; ++k) {
      const Edges& edges = pass.edges[k];
      if (edges.strip_row == nullptr) continue;
      float* strip_row = edges.strip_row + at * edges.strip_rows;
      const auto splat_all = [&](auto size) {
        for (int64_t i = 0; i < count; ++i) {
          Row<width> row = Row<width>::read(rows + i * pass.pitch + at);
          splat<width, size>(edges, first + i, strip_row, row);
        }
      };
      if (edges.size == 3)
        splat_all(std::integral_constant<int, 3>());
      else
        splat_all(std::integral_constant<int, 6>());
    }
  });
}

// Rows for lattices that sum pixels, or to be kept.
void stream_tile(const PixelPass& pass, int64_t first, int64_t count, const float* rows) {
  float* to = pass.row + first * pass.pitch;
  for (int64_t at = 0; at < count * pass.pitch; at += 8) stream<8>(to + at, load<8>(rows + at));
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

// Calls f(values of a label, their first row) for every label, and asks for what the tile after the next will need.
template <class T, class F>
inline void for_labels(const PixelPass& pass, int64_t first, T* values, F&& f) {
  const int64_t last = pass.pixels - 1;
  const int32_t near = pass.order[first + 2 * kTile < last ? first + 2 * kTile : last];
  const int32_t far = pass.order[first + 3 * kTile - 1 < last ? first + 3 * kTile - 1 : last];
  for (int64_t label = 0; label < pass.labels; ++label, values += pass.pixels) {
    __builtin_prefetch(values + near, !std::is_const<T>::value);
    __builtin_prefetch(values + far, !std::is_const<T>::value);
    f(values, label);
  }
}

// The labels of pixels at `count` places into rows.
void transpose_in(const PixelPass& pass, int64_t first, int64_t count, float* rows) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t label = pass.labels; label < pass.pitch; ++label) rows[i * pass.pitch + label] = 0;
  const int32_t* pixel = pass.order + first;
  for_labels(pass, first, pass.input, [&](const float* from, int64_t label) {
    for (int64_t i = 0; i < count; ++i) rows[i * pass.pitch + label] = from[pixel[i]];
  });
}

void transpose_out(const PixelPass& pass, int64_t first, int64_t count, const float* rows) {
  const int32_t* pixel = pass.order + first;
  for_labels(pass, first, pass.output, [&](float* to, int64_t label) {
    for (int64_t i = 0; i < count; ++i) to[pixel[i]] = rows[i * pass.pitch + label];
  });
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
    const float* scores = pass.unary + first * pass.pitch;
    float* rows = scratch + kTile * pass.pitch;
    if (pass.input != nullptr) nan |= read_unary(pass, first, count);
    if (pass.reads()) {
      slice_tile(pass, first, count, scores, scratch);
      scores = scratch;
    }
    softmax_tile(scores, count, pass.pitch, rows);
    splat_tile(pass, first, count, rows);
    if (pass.row != nullptr) stream_tile(pass, first, count, rows);
    if (pass.output != nullptr) transpose_out(pass, first, count, rows);
  }
  end_stream();
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
      std::memset(rows, 0, values * sizeof(float));
      if (pass.reads()) slice_tile(pass, first, count, rows, rows);
    }
    for (int64_t i = 0; i < count; ++i)
      softmax_gradient(pass.marginal + (first + i) * pass.pitch, pass.pitch, rows + i * pass.pitch);
    for (int64_t at = 0; at < values; at += 8) store(total + at, load<8>(total + at) + load<8>(rows + at));
    splat_tile(pass, first, count, rows);
    if (pass.row != nullptr) stream_tile(pass, first, count, rows);
    if (pass.output != nullptr) transpose_out(pass, first, count, total);
  }
  end_stream();
}

}  // namespace gwsss_fast::GWSSS_ISA
