// The softmaxes of the edge readout, a row of scores at a time: a row of all nodes' matrices fits into the first cache,
// so every matrix goes through memory once for all edges.

#include "table.h"
#include "values.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr float kLowest = -3.402823466e+38f;

// e[at] = exp(score(at, lanes) - their maximum), zero beyond `size`; returns their sum.
template <class F>
inline float exponentials(int64_t size, float* e, float& maximum, F&& score) {
  Floats largest = splat(kLowest);
  for_lanes(size, [&](int64_t at, auto lanes) {
    const Floats s = score(at, lanes);
    store(e + at, s);
    if constexpr (std::is_same_v<decltype(lanes), Whole>)
      largest = larger<kNative>(s, largest);
    else
      for (int64_t i = at; i < size; ++i) largest[0] = e[i] > largest[0] ? e[i] : largest[0];
  });
  maximum = max_of<kNative>(largest);
  for (int64_t i = size; i < line_pitch(size); ++i) e[i] = kLowest;
  const Floats pivot = splat(maximum);
  Floats sum = {};
  for (int64_t at = 0; at < size; at += kNative) {
    const Floats value = exponential(load<kNative>(e + at) - pivot);
    store(e + at, value);
    sum += value;
  }
  return sum_of<kNative>(sum);
}

inline void add_scaled(int64_t size, float factor, const float* from, float* to) {
  for (int64_t at = 0; at < size; at += kNative)
    store(to + at, load<kNative>(to + at) + factor * load<kNative>(from + at));
}

inline float dot(int64_t size, const float* a, const float* b) {
  Floats sum = {};
  for (int64_t at = 0; at < size; at += kNative) sum += load<kNative>(a + at) * load<kNative>(b + at);
  return sum_of<kNative>(sum);
}

// Scores of row `a` of node i's rows in all edges: of each block j the maximum, the sum of exponentials and their
// product with the means; then for edge (i, j) what of the row's weight each of its two blocks has, and its mean.
struct ChannelRow {
  float* e;         // (nodes, padded channels)
  float* maximum;   // (nodes)
  float* sum;       // (nodes)
  float* product;   // (nodes)
  float* own;       // (nodes) factor of block i in edge (i, j)
  float* other;     // (nodes) factor of block j in edge (i, j)
  float* mixture;   // (nodes) mean of edge (i, j)
};

ChannelRow channel_row(const EdgeChannels& pass, float* scratch) {
  const int64_t line = pass.nodes * line_pitch(pass.channels);
  float* small = scratch + line;
  return {scratch, small, small + pass.nodes, small + 2 * pass.nodes, small + 3 * pass.nodes, small + 4 * pass.nodes,
          small + 5 * pass.nodes};
}

void weigh(const EdgeChannels& pass, int64_t i, const float* scores, const ChannelRow& row) {
  const int64_t size = pass.channels, pitch = line_pitch(size);
  for (int64_t j = 0; j < pass.nodes; ++j) {
    const float* block = scores + j * size;
    float* e = row.e + j * pitch;
    row.sum[j] = exponentials(size, e, row.maximum[j], [&](int64_t at, auto lanes) { return read(block + at, lanes); });
    row.product[j] = dot(size, e, pass.mean + j * pitch);
  }
  for (int64_t j = 0; j < pass.nodes; ++j) {
    if (j == i) {  // both halves of the row are block i
      row.own[j] = 1.0f / row.sum[i];
      row.other[j] = 0.0f;
    } else {
      const float pivot = row.maximum[i] > row.maximum[j] ? row.maximum[i] : row.maximum[j];
      const float own = __builtin_expf(row.maximum[i] - pivot), other = __builtin_expf(row.maximum[j] - pivot);
      const float inverse = 1.0f / (own * row.sum[i] + other * row.sum[j]);
      row.own[j] = own * inverse;
      row.other[j] = other * inverse;
    }
    row.mixture[j] = row.own[j] * row.product[i];
    if (j != i) row.mixture[j] += row.other[j] * row.product[j];
  }
}

}  // namespace

void mirror_rows(const Mirror& pass, int64_t begin, int64_t end) {
  float above[kMirror * kMirror], below[kMirror * kMirror];
  const auto copy = [](float* to, int64_t to_stride, const float* from, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(to + row * to_stride, from + row * stride, columns * sizeof(float));
  };
  for (int64_t row = begin * kMirror; row < end * kMirror && row < pass.size; row += kMirror)
    for (int64_t column = row; column < pass.size; column += kMirror) {
      const int64_t rows = pass.size - row < kMirror ? pass.size - row : kMirror;
      const int64_t columns = pass.size - column < kMirror ? pass.size - column : kMirror;
      float* upper = pass.matrix + row * pass.size + column;
      float* lower = pass.matrix + column * pass.size + row;
      copy(above, kMirror, upper, pass.size, rows, columns);
      if (pass.add) copy(below, kMirror, lower, pass.size, columns, rows);
      if (pass.add) {
        for (int i = 0; i < kMirror; ++i)
          for (int j = 0; j < kMirror; ++j) above[i * kMirror + j] += below[j * kMirror + i];
      } else if (row == column) {  // within a tile on the diagonal, the upper values count
        for (int i = 0; i < kMirror; ++i)
          for (int j = 0; j < i; ++j) above[i * kMirror + j] = above[j * kMirror + i];
      }
      for (int i = 0; i < kMirror; ++i)
        for (int j = 0; j < kMirror; ++j) below[j * kMirror + i] = above[i * kMirror + j];
      copy(upper, pass.size, above, kMirror, rows, columns);
      if (row != column) copy(lower, pass.size, below, kMirror, columns, rows);
    }
}

void edge_positions(const EdgePositions& pass, int64_t begin, int64_t end, float* scratch, float* weights) {
  const int64_t size = pass.positions, pitch = line_pitch(size);
  float* e = scratch;
  float* slopes = scratch + pitch;  // (nodes, pitch): gradients of this row of all matrices
  const float share = 1.0f / static_cast<float>(size);
  for (int64_t row = begin; row < end; ++row) {
    if (pass.toward != nullptr) std::memset(slopes, 0, pass.nodes * pitch * sizeof(float));
    int64_t pair = 0;
    for (int64_t i = 0; i < pass.nodes; ++i)
      for (int64_t j = i; j < pass.nodes; ++j, ++pair) {
        const float* a = pass.grams + (i * size + row) * size;
        const float* b = pass.grams + (j * size + row) * size;
        float maximum;
        const float sum = exponentials(size, e, maximum, [&](int64_t at, auto lanes) {
          return read(a + at, lanes) + read(b + at, lanes);
        });
        const float inverse = share / sum;
        add_scaled(size, inverse, e, weights + pair * pitch);
        if (pass.toward == nullptr) continue;
        const float* toward = pass.toward + pair * pitch;
        const Floats middle = splat(dot(size, e, toward) / sum), factor = splat(inverse);
        float* first = slopes + i * pitch;
        float* second = slopes + j * pitch;
        for (int64_t at = 0; at < size; at += kNative) {
          const Floats slope = load<kNative>(e + at) * factor * (load<kNative>(toward + at) - middle);
          store(first + at, load<kNative>(first + at) + slope);
          if (i != j) store(second + at, load<kNative>(second + at) + slope);
        }
      }
    if (pass.toward != nullptr)
      for (int64_t i = 0; i < pass.nodes; ++i)
        std::memcpy(pass.grams + (i * size + row) * size, slopes + i * pitch, size * sizeof(float));
  }
}

void edge_channels(const EdgeChannels& pass, int64_t begin, int64_t end, float* scratch) {
  const ChannelRow row = channel_row(pass, scratch);
  for (int64_t number = begin; number < end; ++number) {
    const int64_t i = number / pass.channels, channel = number % pass.channels;
    weigh(pass, i, pass.scores + number * pass.nodes * pass.channels, row);
    for (int64_t j = 0; j < pass.nodes; ++j)
      pass.out[(i * pass.nodes + j) * pass.channels + channel] =
          row.mixture[j] + pass.mean[i * line_pitch(pass.channels) + channel];
  }
}

void edge_channels_backward(const EdgeChannels& pass, int64_t begin, int64_t end, float* scratch, float* grad_mean) {
  const ChannelRow row = channel_row(pass, scratch);
  const int64_t size = pass.channels, pitch = line_pitch(size);
  for (int64_t number = begin; number < end; ++number) {
    const int64_t i = number / size, channel = number % size;
    float* scores = pass.scores + number * pass.nodes * size;
    weigh(pass, i, scores, row);
    float own_alpha = 0.0f;  // what the exponentials of block i weigh in all edges together
    for (int64_t j = 0; j < pass.nodes; ++j) {
      const float grad = pass.grad[(i * pass.nodes + j) * size + channel];
      row.own[j] *= grad;
      row.other[j] *= grad;
      own_alpha += row.own[j];
    }
    for (int64_t j = 0; j < pass.nodes; ++j) {
      const float* e = row.e + j * pitch;
      const float* mean = pass.mean + j * pitch;
      add_scaled(size, j == i ? own_alpha : row.other[j], e, grad_mean + j * pitch);
      // Less the mixture before anything is multiplied: where a weight is 1 the difference is zero, exactly.
      for_lanes(size, [&](int64_t at, auto lanes) {
        const Floats value = load<kNative>(mean + at);
        Floats slope = {};
        if (j == i)
          for (int64_t edge = 0; edge < pass.nodes; ++edge) slope += row.own[edge] * (value - row.mixture[edge]);
        else
          slope = row.other[j] * (value - row.mixture[j]);
        write(scores + j * size + at, load<kNative>(e + at) * slope, lanes);
      });
    }
  }
}

}  // namespace gwsss_fast::GWSSS_ISA
