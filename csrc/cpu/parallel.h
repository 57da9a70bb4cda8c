// PyTorch's thread pool through its stable C interface.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <torch/csrc/stable/c/shim.h>

namespace gwsss_fast {

inline int64_t threads() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return std::max<int64_t>(count, 1);
}

// Calls work(begin, end) on disjoint ranges that cover [0, count), `grain` or more items each. The first exception of
// any range is thrown again here.
template <class Work>
void parallel_for(int64_t count, int64_t grain, const Work& work) {
  struct Context {
    const Work& work;
    std::mutex mutex;
    std::exception_ptr error;
  } context{work, {}, nullptr};
  const auto call = [](int64_t begin, int64_t end, void* data) {
    auto& context = *static_cast<Context*>(data);
    try {
      context.work(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(context.mutex);
      if (!context.error) context.error = std::current_exception();
    }
  };
  if (count > 0) torch_parallel_for(0, count, grain, call, &context);
  if (context.error) std::rethrow_exception(context.error);
}

// A step of a plan: work(i) for i in [0, count) in any order.
struct Phase {
  int64_t count;
  std::function<void(int64_t)> work;
};

// Runs phases one after another. All in one parallel region: a phase ends when its work is done, so a thread that the
// system does not run meanwhile holds nobody up. The first exception is thrown again here.
inline void run_phases(const std::vector<Phase>& phases) {
  struct Counters {
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };
  std::vector<Counters> counters(phases.size());
  std::atomic<bool> failed{false};
  const auto take_part = [&](size_t number) {
    const Phase& phase = phases[number];
    Counters& counter = counters[number];
    for (int64_t i = counter.next++; i < phase.count; i = counter.next++) {
      struct Done {
        std::atomic<int64_t>& count;
        ~Done() { ++count; }
      } done{counter.done};
      try {
        if (!failed) phase.work(i);
      } catch (...) {
        failed = true;
        throw;
      }
    }
    // Others are done soon, unless the system has stopped them: giving way at once could cost a time slice.
    using Clock = std::chrono::steady_clock;
    for (const auto start = Clock::now(); counter.done < phase.count;)
      if (Clock::now() - start > std::chrono::milliseconds(1)) std::this_thread::yield();
  };
  int64_t most = 1;
  for (const Phase& phase : phases) most = std::max(most, phase.count);
  parallel_for(std::min(most, threads()), 1, [&](int64_t, int64_t) {
    for (size_t number = 0; number < phases.size(); ++number) take_part(number);
  });
}

// Calls work(i) for i in [0, count) in any order.
template <class Work>
void parallel_tasks(int64_t count, const Work& work) {
  run_phases({{count, [&](int64_t i) { work(i); }}});
}

}  // namespace gwsss_fast
