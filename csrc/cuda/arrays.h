// Memory, stream and order of the steps that run on a GPU, or in a loop on the CPU, where they can be checked without a
// GPU.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <type_traits>
#include <utility>

#include "device.h"
#include "portable.h"

namespace gwsss_fast {

// Where the operators for GPUs are registered. The tests register them for the CPU, with an emulation of CUDA.
#ifdef GWSSS_EMULATED
#define GWSSS_GPU_KEY CPU
constexpr bool kEmulated = true;
#else
#define GWSSS_GPU_KEY CUDA
constexpr bool kEmulated = false;
#endif

// Memory of torch's allocator. Freed memory is taken again by what follows on the same stream alone, so a step that was
// started may outlive its arrays.
template <class T>
struct Array {
  torch::stable::Tensor tensor;
  T* data = nullptr;
  int64_t size = 0;
};

// Where `like` lies: a GPU and its current stream, or the CPU. The GPU is the current one as long as this lives.
class Place {
 public:
  explicit Place(const torch::stable::Tensor& like) : like_(like), on_gpu_(like.is_cuda() || kEmulated) {
    if (!like.is_cuda()) return;
#ifdef GWSSS_TORCH_CUDA
    guard_.emplace(like.get_device_index());
    use_gpu(like.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream_));
#else
    STD_TORCH_CHECK(false, "gwsss_fast: the native library was built without CUDA");
#endif
  }

  void* stream() const { return stream_; }

  template <class T>
  Array<T> make(int64_t size) const {
    using torch::headeronly::ScalarType;
    constexpr auto type = std::is_same_v<T, int64_t> ? ScalarType::Long
        : std::is_same_v<T, int32_t>                 ? ScalarType::Int
                                                     : ScalarType::Float;
    Array<T> made{torch::stable::new_empty(like_, {size * int64_t{sizeof(T)} / element_size(type)}, type)};
    made.data = static_cast<T*>(made.tensor.mutable_data_ptr());
    made.size = size;
    return made;
  }

  // step(i) for i in [0, count).
  template <class Step>
  void run(const Step& step, int64_t count) const {
#ifdef USE_CUDA
    if (on_gpu_) return start(step, count, stream_);
#endif
    for (int64_t i = 0; i < count; ++i)
      if constexpr (std::is_invocable_v<Step, int64_t>)
        step(i);
      else
        step(i, OneLane());
  }

  // Sorted values, and where each was. Equal ones keep their order.
  static std::pair<Array<int64_t>, Array<int64_t>> sort(const Array<int64_t>& values) {
    std::array<StableIValue, 4> stack{torch::stable::detail::from(values.tensor),
                                      torch::stable::detail::from(std::optional<bool>(true)),
                                      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
    return {taken(stack[0]), taken(stack[1])};
  }

  static Array<int64_t> running_sum(const Array<int64_t>& values) {
    std::array<StableIValue, 3> stack{torch::stable::detail::from(values.tensor),
                                      torch::stable::detail::from(int64_t{0}),
                                      torch::stable::detail::from(std::nullopt)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
    return taken(stack[0]);
  }

  // The values once everything that was started has been done: the host waits.
  std::array<int64_t, 2> read(const Array<int64_t>& values) const;

 private:
  static constexpr int64_t element_size(torch::headeronly::ScalarType type) {
    return type == torch::headeronly::ScalarType::Long ? 8 : 4;
  }

  static Array<int64_t> taken(StableIValue value) {
    Array<int64_t> array{torch::stable::detail::to<torch::stable::Tensor>(value)};
    array.data = static_cast<int64_t*>(array.tensor.mutable_data_ptr());
    array.size = array.tensor.numel();
    return array;
  }

  torch::stable::Tensor like_;
  bool on_gpu_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

inline std::array<int64_t, 2> Place::read(const Array<int64_t>& values) const {
  torch::stable::Tensor there = values.tensor;
  if (on_gpu_) {
    there = torch::stable::new_empty(like_, {2}, torch::headeronly::ScalarType::Long, std::nullopt,
                                     torch::stable::Device(torch::headeronly::DeviceType::CPU));
    torch::stable::copy_(there, values.tensor);
  }
  const auto* data = static_cast<const int64_t*>(there.const_data_ptr());
  return {data[0], data[1]};
}

}  // namespace gwsss_fast
