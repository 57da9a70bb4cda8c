// Which simplex of the permutohedral lattice encloses a feature: what csrc/cpu/simd/locate.cpp does for many pixels at
// a time. The same operations in float32 in the same order, so that pixels fall into the same simplices: whatever
// includes this is compiled without fused multiply-add.
#pragma once

#include <cmath>
#include <cstdint>

#include "../cpu/kernels.h"
#include "portable.h"

namespace gwsss_fast {

template <int D>
struct Simplex {
  int64_t code[D + 1];  // of each corner, see `Coding`
  float weight[D + 1];  // barycentric coordinates
};

template <int D>
GWSSS_EITHER Simplex<D> enclosing_simplex(const float (&feature)[D], const Coding& coding) {
  constexpr int size = D + 1;
  float elevated[size], base[size], residual[size], total = 0, excess = 0;
  int32_t rank[size] = {};
  GWSSS_UNROLL
  for (int j = D; j > 0; --j) {
    const float scaled = feature[j - 1] * coding.scale[j - 1];
    elevated[j] = total - static_cast<float>(j) * scaled;
    total += scaled;
  }
  elevated[0] = total;
  GWSSS_UNROLL
  for (int j = 0; j < size; ++j) {  // nearest lattice point of colour 0, off the plane by `excess`
    const float multiple = rintf(elevated[j] * (1.0f / size));
    base[j] = multiple * size;
    excess += multiple;
    residual[j] = elevated[j] - base[j];
  }
  GWSSS_UNROLL
  for (int a = 0; a < size; ++a) {  // place in descending order; of equal ones the earlier coordinate comes later
    GWSSS_UNROLL
    for (int b = a + 1; b < size; ++b) {
      const int32_t smaller = residual[a] < residual[b];
      rank[a] += smaller;
      rank[b] += 1 - smaller;
    }
  }
  GWSSS_UNROLL
  for (int j = 0; j < size; ++j) {  // back onto the plane
    rank[j] += static_cast<int32_t>(excess);
    const int32_t back = (rank[j] < 0 ? size : 0) - (rank[j] >= size ? size : 0);
    rank[j] += back;
    base[j] += static_cast<float>(back);
    residual[j] = (elevated[j] - base[j]) * (1.0f / size);
  }

  float sorted[size] = {};  // residuals by rank; an index known when compiling keeps them in registers
  GWSSS_UNROLL
  for (int r = 0; r < size; ++r) {
    GWSSS_UNROLL
    for (int j = 0; j < size; ++j) sorted[r] = rank[j] == r ? residual[j] : sorted[r];
  }
  Simplex<D> simplex;
  simplex.weight[0] = sorted[D] + 1.0f - sorted[0];
  GWSSS_UNROLL
  for (int k = 1; k < size; ++k) simplex.weight[k] = sorted[D - k] - sorted[size - k];

  uint64_t code = 0, step = 0;  // from a corner to the next all coordinates grow by one, and one falls by `size`
  GWSSS_UNROLL
  for (int j = 0; j < D; ++j) {
    code += static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(base[j]))) * coding.stride[j];
    step += coding.stride[j];
  }
  GWSSS_UNROLL
  for (int k = 0; k < size; ++k) {
    simplex.code[k] = static_cast<int64_t>(code);
    code += step;
    GWSSS_UNROLL
    for (int j = 0; j < D; ++j) code -= rank[j] == size - 1 - k ? size * coding.stride[j] : 0;
  }
  return simplex;
}

}  // namespace gwsss_fast
