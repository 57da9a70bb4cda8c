// Starting kernels, and the lanes of a warp.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <stdexcept>
#include <string>

#include "portable.h"

namespace gwsss_fast {

// The shared memory that a launch has asked for. (Emulations have their own.)
#ifndef GWSSS_SHARED_MEMORY
#define GWSSS_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// Throws what CUDA has to say.
inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": CUDA: " + cudaGetErrorString(error));
}

// kernel(arguments...) in `blocks` blocks, which a large tensor may be too many for. `what` is the operation's name.
template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
            const Arguments&... arguments) {
  if (blocks > INT_MAX) throw std::invalid_argument(std::string(what) + ": the tensors are too large for one launch");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  if (blocks > 0) check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), what);
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
      value = larger(value, __shfl_xor_sync(mask, value, distance));
    return value;
  }
};

}  // namespace gwsss_fast
