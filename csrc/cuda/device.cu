// The GPU of the calling thread.

#include "gwsss_fast/dense_crf.h"
#include "device.h"
#include "launch.cuh"

namespace gwsss_fast {
namespace {

__global__ void nothing() {}

}  // namespace

void use_gpu(int device) { check_cuda(cudaSetDevice(device), "gwsss_fast"); }

}  // namespace gwsss_fast

// Why this library's kernels cannot run on the current GPU, such as machine code for others or an old driver, or ""
// if they can.
extern "C" GWSSS_API const char* gwsss_fast_cuda_problem() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, gwsss_fast::nothing);
  cudaGetLastError();  // or the next check of a launch would find it
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
