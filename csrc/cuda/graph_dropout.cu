// Graph dropout on the GPU. The map needs the largest mean of a node before anything can be scaled. Where blocks form
// clusters (compute capability 9.0 and newer), those of a cluster hold a node's rows in their shared memory and tell
// each other their largest means, so that memory is read once and written once. Elsewhere, and where a node is too
// large for that, there are two passes. Backward the means are known, and one pass reads everything once.

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "graph_dropout.h"
#include "launch.cuh"

namespace gwsss_fast {

template <>
struct Number<__half> {
  static __device__ __forceinline__ float read(__half value) { return __half2float(value); }
  static __device__ __forceinline__ __half write(float value) { return __float2half_rn(value); }
};

template <>
struct Number<__nv_bfloat16> {
  static __device__ __forceinline__ float read(__nv_bfloat16 value) { return __bfloat162float(value); }
  static __device__ __forceinline__ __nv_bfloat16 write(float value) { return __float2bfloat16_rn(value); }
};

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kClusterThreads = 512;  // two blocks a multiprocessor with the paper's nodes in 16 bits
constexpr int64_t kRows = 64;         // that a block scales
constexpr int64_t kStaticShared = 1024;

// The largest value of all threads of the block.
__device__ float largest_of_block(float value, int warps, float* of_warps) {
  value = Lanes<32>().largest(value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = of_warps[0];
  for (int warp = 1; warp < warps; ++warp) value = larger(value, of_warps[warp]);
  return value;
}

template <class T, int W>
__global__ void __launch_bounds__(kClusterThreads, 2)
    dropout_in_cluster(const __grid_constant__ Dropout<T, W> call, int64_t rows) {
#if __CUDA_ARCH__ >= 900
  GWSSS_SHARED_MEMORY(memory);
  __shared__ float of_warps[kClusterThreads / 32], of_block;
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned blocks = cluster.num_blocks(), rank = cluster.block_rank();
  auto* const means = reinterpret_cast<float*>(memory);
  auto* const tile = reinterpret_cast<Pack<T, W>*>(memory + (rows * int64_t{sizeof(float)} + 15) / 16 * 16);
  const int64_t first = rank * rows, end = first + rows < call.positions ? first + rows : call.positions;
  const Share share{blockIdx.x / blocks, first, end, static_cast<int>(threadIdx.x / 32), kClusterThreads / 32};
  const Lanes<32> lanes;

  const float largest = largest_of_block(read_rows(call, share, lanes, tile, means), share.warps, of_warps);
  if (threadIdx.x == 0) of_block = largest;
  cluster.sync();
  float of_node = -INFINITY;
  for (unsigned block = 0; block < blocks; ++block)
    of_node = larger(of_node, *cluster.map_shared_rank(&of_block, block));
  cluster.barrier_arrive();
  scale_rows(call, share, lanes, tile, means, of_node * call.threshold);
  cluster.barrier_wait();  // a block's shared memory must outlive the others' reading of it
#endif
}

// The means of 8 rows; all nodes are one here.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) dropout_means(const __grid_constant__ Dropout<T, W> call, int64_t rows) {
  const int64_t first = blockIdx.x * int64_t{kWarps}, end = first + kWarps < rows ? first + kWarps : rows;
  read_rows(call, {0, first, end, static_cast<int>(threadIdx.x / 32), kWarps}, Lanes<32>(),
            static_cast<Pack<T, W>*>(nullptr), nullptr);
}

// The product with the map, forward or backward, for kRows rows of a node, whose means are known.
template <class T, int W, bool Backward>
__global__ void __launch_bounds__(kThreads) dropout_scale(const __grid_constant__ Dropout<T, W> call, int64_t blocks) {
  __shared__ float of_warps[kWarps];
  const int64_t node = blockIdx.x / blocks, first = (blockIdx.x - node * blocks) * kRows;
  const int64_t end = first + kRows < call.positions ? first + kRows : call.positions;
  const float* means = call.o + node * call.positions;
  float largest = -INFINITY;
  for (int64_t i = threadIdx.x; i < call.positions; i += kThreads) largest = larger(largest, means[i]);
  const float limit = largest_of_block(largest, kWarps, of_warps) * call.threshold;
  const Share share{node, first, end, static_cast<int>(threadIdx.x / 32), kWarps};
  if constexpr (Backward)
    scale_rows_backward(call, share, Lanes<32>(), limit);
  else
    scale_rows(call, share, Lanes<32>(), static_cast<const Pack<T, W>*>(nullptr), nullptr, limit);
}

int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "graph_dropout");
  check_cuda(cudaDeviceGetAttribute(&value, name, device), "graph_dropout");
  return value;
}

// Whether the nodes were given to clusters.
template <class T, int W>
bool start_clusters(const DropoutCall& call, void* stream) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 9) return false;
  cudaFuncAttributes built{};  // for an older architecture the kernel is empty, and this GPU runs it all the same
  check_cuda(cudaFuncGetAttributes(&built, dropout_in_cluster<T, W>), "graph_dropout");
  if (built.ptxVersion < 90) return false;
  const int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStaticShared;
  const ClusterPlan plan = plan_cluster(call.positions, call.channels * int64_t{sizeof(T)}, limit);
  if (plan.blocks == 0 || call.nodes > INT_MAX / plan.blocks) return false;
  const auto kernel = dropout_in_cluster<T, W>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared)),
             "graph_dropout");
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {static_cast<unsigned>(plan.blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(call.nodes * plan.blocks));
  config.blockDim = dim3(kClusterThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &size;
  config.numAttrs = 1;
  int together = 0;  // a part of a GPU may be too small for a cluster
  if (cudaOccupancyMaxActiveClusters(&together, kernel, &config) != cudaSuccess || together == 0) {
    cudaGetLastError();
    return false;
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, call.of<T, W>(), plan.rows), "graph_dropout");
  return true;
}

template <class T, int W>
void start_packs(const DropoutCall& call, void* stream) {
  const Dropout<T, W> dropout = call.of<T, W>();
  const int64_t rows = call.nodes * call.positions, blocks = (call.positions + kRows - 1) / kRows;
  constexpr auto name = "graph_dropout";
  if (call.backward()) {
    launch(name, dropout_scale<T, W, true>, call.nodes * blocks, kThreads, stream, dropout, blocks);
  } else if (!start_clusters<T, W>(call, stream)) {
    launch(name, dropout_means<T, W>, (rows + kWarps - 1) / kWarps, kThreads, stream, dropout, rows);
    launch(name, dropout_scale<T, W, false>, call.nodes * blocks, kThreads, stream, dropout, blocks);
  }
}

template <class T>
void start_type(const DropoutCall& call, void* stream) {
  constexpr int width = 16 / sizeof(T);
  if (call.aligned(width))
    start_packs<T, width>(call, stream);
  else
    start_packs<T, 1>(call, stream);
}

}  // namespace

void start_graph_dropout(const DropoutCall& call, void* stream) {
  switch (call.type) {
    case DropoutCall::float32: return start_type<float>(call, stream);
    case DropoutCall::float16: return start_type<__half>(call, stream);
    case DropoutCall::bfloat16: return start_type<__nv_bfloat16>(call, stream);
  }
}

}  // namespace gwsss_fast
