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

// A step of a plan: work(i) for i in [0, count).
struct Phase {
  // In which order a thread takes it. `shared`: all threads from one sequence. `own`: first a part of its own, the same
  // in every phase of that count, so that it finds in its cache what it left there, then what others have not begun.
  enum Order { shared, own };

  int64_t count;
  std::function<void(int64_t)> work;
  Order order = shared;
  bool awaited = true;  // whether the next phase needs all of it
};

// Runs phases one after another. All in one parallel region: a phase ends when its work is done, so a thread that the
// system does not run meanwhile holds nobody up. The first exception is thrown again here.
inline void run_phases(const std::vector<Phase>& phases) {
  struct Counter {
    alignas(64) std::atomic<int64_t> value{0};
  };
  int64_t most = 1;
  for (const Phase& phase : phases) most = std::max(most, phase.count);
  const int64_t takers = std::min(most, threads());
  std::vector<Counter> done(phases.size()), next(phases.size() * takers);  // next: of each part of each phase
  std::atomic<bool> failed{false};
  const auto run = [&](size_t number, int64_t i) {
    struct Done {
      std::atomic<int64_t>& count;
      ~Done() { ++count; }
    } counted{done[number].value};
    try {
      if (!failed) phases[number].work(i);
    } catch (...) {
      failed = true;
      throw;
    }
  };
  const auto take_part = [&](size_t number, int64_t taker) {
    const Phase& phase = phases[number];
    const int64_t parts = phase.order == Phase::shared ? 1 : takers;
    for (int64_t turn = 0; turn < parts; ++turn) {
      const int64_t part = (taker + turn) % parts;
      const int64_t begin = phase.count * part / parts, end = phase.count * (part + 1) / parts;
      std::atomic<int64_t>& taken = next[number * takers + part].value;
      for (int64_t i = begin + taken++; i < end; i = begin + taken++) run(number, i);
    }
    if (!phase.awaited) return;
    // Others are done soon, unless the system has stopped them: giving way at once could cost a time slice.
    using Clock = std::chrono::steady_clock;
    for (const auto start = Clock::now(); done[number].value < phase.count;)
      if (Clock::now() - start > std::chrono::milliseconds(1)) std::this_thread::yield();
  };
  parallel_for(takers, 1, [&](int64_t taker, int64_t) {
    for (size_t number = 0; number < phases.size(); ++number) take_part(number, taker);
  });
}

// Calls work(i) for i in [0, count) in any order.
template <class Work>
void parallel_tasks(int64_t count, const Work& work) {
  run_phases({{count, [&](int64_t i) { work(i); }}});
}

}  // namespace gwsss_fast
