// Starting kernels, and the lanes of a warp.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "portable.h"

namespace gwsss_fast {

// Throws what CUDA has to say.
inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": CUDA: " + cudaGetErrorString(error));
}

// `Count` neighbouring lanes of a warp. Only they wait for each other, so others may have left.
template <int Count>
struct Lanes {
  static constexpr int count = Count;
  int lane;
  unsigned mask;

  __device__ __forceinline__ Lanes() {
    const unsigned own = threadIdx.x % 32;
    lane = static_cast<int>(own % Count);
    mask = (Count == 32 ? ~0u : (1u << Count % 32) - 1) << (own - lane);
  }

  __device__ __forceinline__ float sum(float value) const {
#pragma unroll
    for (int distance = Count / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(mask, value, distance);
    return value;
  }

  __device__ __forceinline__ float largest(float value) const {
#pragma unroll
    for (int distance = Count / 2; distance > 0; distance /= 2)
      value = fmaxf(value, __shfl_xor_sync(mask, value, distance));
    return value;
  }
};

}  // namespace gwsss_fast
