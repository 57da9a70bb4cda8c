// What csrc/cuda/ uses of CUDA, on the CPU: a block is a thread of the system, its CUDA threads are fibers that take
// turns until they meet. Slow, and nothing like a GPU's order of events, but with the same indices, masks and barriers.
#pragma once

#include <pthread.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __CUDA_ARCH__ 900
#define GWSSS_SHARED_MEMORY(name) alignas(16) static thread_local unsigned char name[227 << 10]

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulation {

// The GPU: $EMULATED_CAPABILITY (major; 9) and $EMULATED_SHARED (bytes a block may ask for; 227 KiB).
int attribute(cudaDeviceAttr name);

// What the kernels were compiled for: $EMULATED_PTX (90). Before 90 there are no clusters.
int ptx();

// Threads that wait for each other.
struct Meeting {
  int arrived = 0;
  int64_t number = 0;
};

struct Cluster {
  pthread_barrier_t barrier;
  std::vector<char*> anchors;  // the same variable in each block's memory
};

struct Fiber {
  ucontext_t context;
  bool done = false;
};

struct Block {
  unsigned threads, rank;
  Cluster* cluster;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  unsigned current;
  Meeting block, wide;
  std::map<std::pair<unsigned, unsigned>, Meeting> lanes;  // by warp and mask
  std::vector<float> exchanged;
};

struct Index {
  unsigned x;
};

extern thread_local Block* block;
extern thread_local Index thread_index, block_index;
extern thread_local char anchor;

// The last of `count` threads calls `last`, and all go on.
void meet(Meeting& meeting, unsigned count, const std::function<void()>& last = {});
void meet_cluster();
float exchange(unsigned mask, float value, unsigned distance);
void launch(unsigned blocks, unsigned threads, unsigned cluster, const std::function<void()>& kernel);

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define __syncthreads() emulation::meet(emulation::block->block, emulation::block->threads)
#define __shfl_xor_sync(mask, value, distance) emulation::exchange(mask, value, distance)

inline const char* cudaGetErrorString(cudaError_t) { return "an emulation has no errors"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = emulation::attribute(name);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  return attributes->ptxVersion = emulation::ptx(), cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) ? cudaSuccess : 1;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, Kernel, const cudaLaunchConfig_t*) {
  return *count = 1, cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  if (config->gridDim.x % cluster != 0) return 1;
  if (config->numAttrs > 0 && emulation::ptx() < 90) return cudaSuccess;  // an empty kernel
  emulation::launch(config->gridDim.x, config->blockDim.x, cluster, [&] { kernel(arguments...); });
  return cudaSuccess;
}
