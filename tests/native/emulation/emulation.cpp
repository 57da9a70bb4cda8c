// The scheduler of the emulated GPU, and the operators of a library whose kernels run on it.

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <memory>
#include <thread>

#include "cpu/kernels.h"
#include "cuda_runtime.h"

namespace emulation {

thread_local Block* block;
thread_local Index thread_index, block_index;
thread_local char anchor;

namespace {

constexpr size_t kStack = 64 << 10;
thread_local const std::function<void()>* running;
thread_local std::vector<std::unique_ptr<char[]>> stacks;  // of the fibers, for one block after the other

void yield() { swapcontext(&block->fibers[block->current].context, &block->scheduler); }

void enter() {
  (*running)();
  block->fibers[block->current].done = true;
  yield();
}

void run_block(Block& own, unsigned index, const std::function<void()>& kernel) {
  block = &own;
  block_index = {index};
  running = &kernel;
  own.fibers.resize(own.threads);
  own.exchanged.resize(own.threads);
  while (stacks.size() < own.threads) stacks.emplace_back(new char[kStack]);
  for (unsigned thread = 0; thread < own.threads; ++thread) {
    ucontext_t& context = own.fibers[thread].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[thread].get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (unsigned thread = 0; thread < own.threads; ++thread) {
      if (own.fibers[thread].done) continue;
      any = true;
      own.current = thread;
      thread_index = {thread};
      swapcontext(&own.scheduler, &own.fibers[thread].context);
    }
  }
}

void run_cluster(unsigned first, unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  Cluster cluster;
  cluster.anchors.resize(blocks);
  pthread_barrier_init(&cluster.barrier, nullptr, blocks);
  std::vector<std::unique_ptr<Block>> all;
  std::vector<std::thread> running_blocks;
  const auto run = [&](unsigned rank) {
    cluster.anchors[rank] = &anchor;
    pthread_barrier_wait(&cluster.barrier);
    run_block(*all[rank], first + rank, kernel);
  };
  for (unsigned rank = 0; rank < blocks; ++rank) {
    all.push_back(std::make_unique<Block>());
    all.back()->threads = threads;
    all.back()->rank = rank;
    all.back()->cluster = &cluster;
  }
  for (unsigned rank = 1; rank < blocks; ++rank) running_blocks.emplace_back(run, rank);
  run(0);
  for (std::thread& thread : running_blocks) thread.join();
  pthread_barrier_destroy(&cluster.barrier);
}

int setting(const char* name, int otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::atoi(given) : otherwise;
}

}  // namespace

int attribute(cudaDeviceAttr name) {
  return name == cudaDevAttrComputeCapabilityMajor ? setting("EMULATED_CAPABILITY", 9)
                                                   : setting("EMULATED_SHARED", 227 << 10);
}

int ptx() { return setting("EMULATED_PTX", 90); }

void meet(Meeting& meeting, unsigned count, const std::function<void()>& last) {
  const int64_t number = meeting.number;
  if (static_cast<unsigned>(++meeting.arrived) == count) {
    if (last) last();
    meeting.arrived = 0;
    ++meeting.number;
  }
  while (meeting.number == number) yield();
}

void meet_cluster() {
  Block& own = *block;
  meet(own.wide, own.threads, [&own] { pthread_barrier_wait(&own.cluster->barrier); });
}

float exchange(unsigned mask, float value, unsigned distance) {
  Block& own = *block;
  const unsigned self = own.current, other = self ^ distance;
  if ((mask >> self % 32 & 1) == 0 || (mask >> other % 32 & 1) == 0) std::abort();  // not one of those that meet
  Meeting& lanes = own.lanes[{self / 32, mask}];
  const auto count = static_cast<unsigned>(__builtin_popcount(mask));
  own.exchanged[self] = value;
  meet(lanes, count);
  const float received = own.exchanged[other];
  meet(lanes, count);
  return received;
}

void launch(unsigned blocks, unsigned threads, unsigned cluster, const std::function<void()>& kernel) {
  for (unsigned first = 0; first < blocks; first += cluster) run_cluster(first, cluster, threads, kernel);
}

}  // namespace emulation

namespace gwsss_fast {

// The CPU's own loops are no part of this library.
const Kernels& kernels() { std::abort(); }

}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY(gwsss_fast_native, library) {
  library.def(
      "graph_dropout(Tensor g, Tensor keep_salient, float drop_threshold, Tensor(a!) out, Tensor(b!) o) -> ()");
  library.def(
      "graph_dropout_backward(Tensor grad, Tensor g, Tensor o, Tensor keep_salient, float drop_threshold, "
      "Tensor(a!) grad_g) -> ()");
  library.def(
      "dense_crf(Tensor prob, Tensor image, float sxy_gaussian, float w_gaussian, float sxy_bilateral, float srgb, "
      "float w_bilateral, int iterations) -> Tensor");
  library.def(
      "dense_crf_backward(Tensor grad, Tensor prob, Tensor image, float sxy_gaussian, float w_gaussian, "
      "float sxy_bilateral, float srgb, float w_bilateral, int iterations) -> Tensor");
}
