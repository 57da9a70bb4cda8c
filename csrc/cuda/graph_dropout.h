// Graph dropout (Eq. 11, 12) by rows: a row is a position of a node, and a warp takes it. The kernels around these
// functions are in graph_dropout.cu.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "portable.h"

namespace gwsss_fast {

// How numbers of a type are read and written; graph_dropout.cu adds those of 16 bits.
template <class T>
struct Number;

template <>
struct Number<float> {
  static GWSSS_EITHER float read(float value) { return value; }
  static GWSSS_EITHER float write(float value) { return value; }
};

// W numbers, read and written at once.
template <class T, int W>
struct alignas(W * sizeof(T)) Pack {
  T at[W];
};

template <class T, int W>
struct Dropout {
  const Pack<T, W>* g;        // (nodes, positions, units)
  const Pack<T, W>* grad;     // of the result; backward only
  Pack<T, W>* out;            // the result, backward the gradient of g
  float* o;                   // (nodes, positions) means over channels: written forward, read backward
  const bool* keep_salient;   // (nodes) whether a node takes the importance map
  int64_t positions;
  int64_t units;              // packs a row
  float channels;
  float threshold;
};

// The rows [first, last) of a node are one block's; of these a warp takes every `warps`-th.
struct Share {
  int64_t node;
  int64_t first;
  int64_t last;
  int warp;
  int warps;
};

// What a row is multiplied by, and the derivative by its mean.
struct MapValue {
  float s;
  float slope;
};

GWSSS_EITHER MapValue map_value(float mean, float limit, bool keep_salient) {
  const float importance = 1.0f / (1.0f + expf(-mean)), kept = mean < limit ? 1.0f : 0.0f;
  return keep_salient ? MapValue{importance, importance * (1.0f - importance)} : MapValue{mean * kept, kept};
}

// Writes the means of a warp's rows; returns the largest. tile: keeps the block's rows, or null; means: keeps theirs.
template <class T, int W, class Lanes>
GWSSS_EITHER float read_rows(const Dropout<T, W>& call, const Share& share, const Lanes& lanes, Pack<T, W>* tile,
                             float* means) {
  float largest = -INFINITY;
  for (int64_t row = share.first + share.warp; row < share.last; row += share.warps) {
    const Pack<T, W>* from = call.g + (share.node * call.positions + row) * call.units;
    float sum = 0;
    GWSSS_UNROLL_4
    for (int64_t unit = lanes.lane; unit < call.units; unit += lanes.count) {
      const Pack<T, W> values = from[unit];
      if (tile != nullptr) tile[(row - share.first) * call.units + unit] = values;
      GWSSS_UNROLL
      for (int i = 0; i < W; ++i) sum += Number<T>::read(values.at[i]);
    }
    const float mean = lanes.sum(sum) / call.channels;
    if (lanes.lane == 0) call.o[share.node * call.positions + row] = mean;
    if (lanes.lane == 0 && means != nullptr) means[row - share.first] = mean;
    largest = larger(largest, mean);
  }
  return largest;
}

// out = g * s. limit: the node's largest mean times the threshold. tile, means: what read_rows kept, or null.
template <class T, int W, class Lanes>
GWSSS_EITHER void scale_rows(const Dropout<T, W>& call, const Share& share, const Lanes& lanes, const Pack<T, W>* tile,
                             const float* means, float limit) {
  for (int64_t row = share.first + share.warp; row < share.last; row += share.warps) {
    const int64_t at = share.node * call.positions + row;
    const float mean = means != nullptr ? means[row - share.first] : call.o[at];
    const float s = map_value(mean, limit, call.keep_salient[share.node]).s;
    const Pack<T, W>* from = tile != nullptr ? tile + (row - share.first) * call.units : call.g + at * call.units;
    GWSSS_UNROLL_4
    for (int64_t unit = lanes.lane; unit < call.units; unit += lanes.count) {
      Pack<T, W> values = from[unit];
      GWSSS_UNROLL
      for (int i = 0; i < W; ++i) values.at[i] = Number<T>::write(Number<T>::read(values.at[i]) * s);
      call.out[at * call.units + unit] = values;
    }
  }
}

// out = grad * s + slope / channels * (grad . g). The first packs of grad stay in registers, so that rows of up to
// `held` * 32 packs are read once.
template <class T, int W, class Lanes>
GWSSS_EITHER void scale_rows_backward(const Dropout<T, W>& call, const Share& share, const Lanes& lanes, float limit) {
  constexpr int held = 4;
  for (int64_t row = share.first + share.warp; row < share.last; row += share.warps) {
    const int64_t at = share.node * call.positions + row;
    const MapValue map = map_value(call.o[at], limit, call.keep_salient[share.node]);
    const Pack<T, W>*g = call.g + at * call.units, *grad = call.grad + at * call.units;
    Pack<T, W> first[held] = {};
    float dot = 0;
    const auto multiply = [&](const Pack<T, W>& a, const Pack<T, W>& b) {
      GWSSS_UNROLL
      for (int i = 0; i < W; ++i) dot += Number<T>::read(a.at[i]) * Number<T>::read(b.at[i]);
    };
    GWSSS_UNROLL
    for (int h = 0; h < held; ++h) {
      const int64_t unit = lanes.lane + h * lanes.count;
      if (unit >= call.units) break;
      first[h] = grad[unit];
      multiply(first[h], g[unit]);
    }
    for (int64_t unit = lanes.lane + held * lanes.count; unit < call.units; unit += lanes.count)
      multiply(grad[unit], g[unit]);
    const float through_map = lanes.sum(dot) * map.slope / call.channels;
    const auto write = [&](int64_t unit, const Pack<T, W>& slopes) {
      Pack<T, W> result;
      GWSSS_UNROLL
      for (int i = 0; i < W; ++i)
        result.at[i] = Number<T>::write(Number<T>::read(slopes.at[i]) * map.s + through_map);
      call.out[at * call.units + unit] = result;
    };
    GWSSS_UNROLL
    for (int h = 0; h < held; ++h) {
      const int64_t unit = lanes.lane + h * lanes.count;
      if (unit >= call.units) break;
      write(unit, first[h]);
    }
    for (int64_t unit = lanes.lane + held * lanes.count; unit < call.units; unit += lanes.count)
      write(unit, grad[unit]);
  }
}

// How a cluster of blocks holds a node: `rows` for each block, in `shared` bytes of its memory, the means first.
struct ClusterPlan {
  int blocks;  // 0: it does not fit
  int64_t rows;
  int64_t shared;
};

constexpr int kLargestCluster = 8;  // what every GPU with clusters can start

inline int64_t bytes_of_means(int64_t rows) { return (rows * int64_t{sizeof(float)} + 15) / 16 * 16; }

// As few blocks as keep several of them on a multiprocessor. limit: bytes of shared memory a block.
inline ClusterPlan plan_cluster(int64_t positions, int64_t row_bytes, int64_t limit) {
  constexpr int64_t wanted = 32 << 10;
  for (int blocks = 1; blocks <= kLargestCluster; blocks *= 2) {
    const int64_t rows = (positions + blocks - 1) / blocks, shared = bytes_of_means(rows) + rows * row_bytes;
    if (shared <= limit && (shared <= wanted || blocks == kLargestCluster)) return {blocks, rows, shared};
  }
  return {};
}

// A call of any type.
struct DropoutCall {
  enum Type { float32, float16, bfloat16 } type;
  const void* g;
  const void* grad;
  void* out;
  float* o;
  const bool* keep_salient;
  int64_t nodes;
  int64_t positions;
  int64_t channels;
  float threshold;

  bool backward() const { return grad != nullptr; }

  template <class T, int W>
  Dropout<T, W> of() const {
    return {static_cast<const Pack<T, W>*>(g), static_cast<const Pack<T, W>*>(grad), static_cast<Pack<T, W>*>(out), o,
            keep_salient, positions, channels / W, static_cast<float>(channels), threshold};
  }

  // Whether rows are whole packs of 16 bytes at multiples of 16 bytes.
  bool aligned(int64_t width) const {
    const auto addresses = reinterpret_cast<uintptr_t>(g) | reinterpret_cast<uintptr_t>(grad) |
        reinterpret_cast<uintptr_t>(out);
    return channels % width == 0 && addresses % 16 == 0;
  }
};

// On the current GPU, in the order of `stream`.
void start_graph_dropout(const DropoutCall& call, void* stream);

}  // namespace gwsss_fast
