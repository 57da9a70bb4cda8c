// Starts the steps of the dense CRF on the GPU. Compiled without fused multiply-add, see simplex.h.

#include "crf_steps.h"
#include "launch.cuh"

namespace gwsss_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of a pixel: up to 32 labels at once

template <class Step>
__global__ void __launch_bounds__(kThreads) for_index(const __grid_constant__ Step step, int64_t count) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < count) step(i);
}

template <class Step>
__global__ void __launch_bounds__(kThreads) for_pixel(const __grid_constant__ Step step, int64_t count) {
  const int64_t pixel = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / kLanes;
  if (pixel < count) step(pixel, Lanes<kLanes>());
}

template <class Step>
void start_kernel(void (*kernel)(Step, int64_t), const Step& step, int64_t count, int lanes, void* stream) {
  const int64_t each = kThreads / lanes;
  launch("dense_crf", kernel, (count + each - 1) / each, kThreads, stream, step, count);
}

}  // namespace

#define GWSSS_START(Step)                                               \
  void start(const Step& step, int64_t count, void* stream) {           \
    start_kernel<Step>(for_index<Step>, step, count, 1, stream);        \
  }
GWSSS_CRF_STEPS(GWSSS_START)

#define GWSSS_START_PIXELS(Step)                                        \
  void start(const Step& step, int64_t count, void* stream) {           \
    start_kernel<Step>(for_pixel<Step>, step, count, kLanes, stream);   \
  }
GWSSS_CRF_PIXEL_STEPS(GWSSS_START_PIXELS)

}  // namespace gwsss_fast
