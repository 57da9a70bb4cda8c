#include "memory.h"

#include <cstring>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "buffer.h"
#include "tensors.h"

namespace gwsss_fast {
namespace {

constexpr size_t kLarge = size_t{1} << 20;  // bytes; smaller ones come from the allocator's own stock

Tensor new_empty(const Tensor& like, const std::vector<int64_t>& shape) {
  require_values({"new_empty", "like", like});
  return empty_tensor(like.scalar_type(), shape);
}

}  // namespace

Tensor empty_tensor(ScalarType type, const std::vector<int64_t>& shape) {
  size_t bytes = type == ScalarType::Float ? 4 : 2;
  std::vector<int64_t> strides(shape.size(), 1);
  bool too_large = false;
  for (size_t i = shape.size(); i-- > 0;) {
    STD_TORCH_CHECK(shape[i] >= 0, "new_empty: shape must hold no negative number, and one is ", shape[i]);
    if (i + 1 < shape.size()) strides[i] = strides[i + 1] * std::max<int64_t>(shape[i + 1], 1);
    too_large = too_large || __builtin_mul_overflow(bytes, static_cast<size_t>(shape[i]), &bytes);
  }
  STD_TORCH_CHECK(!too_large && bytes < (size_t{1} << 62), "new_empty: shape is too large");
  if (bytes < kLarge) return torch::stable::empty(shape, type);
  void* data = take_memory(bytes);
  return torch::stable::from_blob(data, shape, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  type, [bytes](void* memory) { give_memory(memory, bytes); });
}

void poison(const Tensor& tensor) {
  const size_t bytes = tensor.numel() * (tensor.scalar_type() == ScalarType::Float ? 4 : 2);
  if (bytes > 0) std::memset(tensor.mutable_data_ptr(), 0xff, bytes);
}

}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("new_empty", TORCH_BOX(&gwsss_fast::new_empty));
}
