// Code for the GPU that also runs on the CPU: there it can be checked without a GPU. Plain C++ but for these words.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GWSSS_EITHER __host__ __device__ __forceinline__
#define GWSSS_UNROLL _Pragma("unroll")
#define GWSSS_UNROLL_4 _Pragma("unroll 4")
#else
#define GWSSS_EITHER inline
#define GWSSS_UNROLL _Pragma("GCC unroll 8")
#define GWSSS_UNROLL_4
#endif

namespace gwsss_fast {

// NaN is larger than any number.
GWSSS_EITHER float larger(float a, float b) { return a > b || a != a ? a : b; }

// Threads that work on one row together. On the CPU one thread does it all; see warp.cuh for the GPU.
struct OneLane {
  int lane = 0;
  int count = 1;

  float sum(float value) const { return value; }
  float largest(float value) const { return value; }
};

// i = row * width + column. Divisions of 64 bits are slow on a GPU.
GWSSS_EITHER void split(int64_t i, int64_t width, int64_t& row, int64_t& column) {
  if (i <= 0xffffffff && width <= 0xffffffff) {
    const auto small = static_cast<uint32_t>(i), divisor = static_cast<uint32_t>(width), quotient = small / divisor;
    row = quotient;
    column = small - quotient * divisor;
  } else {
    row = i / width;
    column = i - row * width;
  }
}

}  // namespace gwsss_fast
