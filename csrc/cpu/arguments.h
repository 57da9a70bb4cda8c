// Tensors of operators: what is asked of them, and their values.
#pragma once

#include <cstring>
#include <string>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "buffer.h"
#include "edges.h"

namespace gwsss_fast {

inline bool is_bfloat16(const torch::stable::Tensor& x) {
  return x.scalar_type() == torch::headeronly::ScalarType::BFloat16;
}

// float32 or bfloat16, of `type`, contiguous and on the CPU, with so many axes. Messages name the argument.
inline void check_layout(const char* operation, const char* name, const torch::stable::Tensor& x, int64_t axes,
                         torch::headeronly::ScalarType type) {
  const std::string prefix = std::string(operation) + ": " + name;
  STD_TORCH_CHECK(x.is_cpu(), prefix, " must be on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::Float || is_bfloat16(x), prefix,
                  " must be float32 or bfloat16");
  STD_TORCH_CHECK(x.scalar_type() == type, prefix, " has another dtype than it must have here");
  STD_TORCH_CHECK(x.dim() == axes, prefix, " must have ", axes, " axes, not ", x.dim());
  STD_TORCH_CHECK(x.is_contiguous(), prefix, " must be contiguous");
}

inline void check_like(const char* operation, const char* name, const torch::stable::Tensor& x, const char* of,
                       const torch::stable::Tensor& like) {
  check_layout(operation, name, x, like.dim(), like.scalar_type());
  for (int64_t axis = 0; axis < like.dim(); ++axis)
    STD_TORCH_CHECK(x.size(axis) == like.size(axis), operation, ": ", name, " must have the shape of ", of);
}

template <class T>
T* values_of(const torch::stable::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Sums in float32 that a tensor of T is to hold: in its own memory where that is float32. They start at zero.
template <class T>
class FloatSums {
 public:
  FloatSums(const torch::stable::Tensor& tensor, int64_t count) : count_(count) {
    if constexpr (std::is_same_v<T, float>) {
      data_ = values_of<float>(tensor);
    } else {
      own_ = Buffer<float>(count);
      data_ = own_.data();
    }
    if (count > 0) std::memset(data_, 0, count * sizeof(float));
  }

  float* data() const { return data_; }

  // Once they are complete.
  void give(T* to) const {
    if constexpr (!std::is_same_v<T, float>) narrow<T>(nullptr, data_, count_, to);
  }

 private:
  int64_t count_;
  Buffer<float> own_;
  float* data_ = nullptr;
};

}  // namespace gwsss_fast
