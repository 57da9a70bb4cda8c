// Checks of an operator's tensors; each names the operator and the argument.
#pragma once

#include <initializer_list>
#include <string>

#include <torch/csrc/stable/tensor.h>

#include "kernels.h"

namespace gwsss_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor with the names that messages need.
struct Argument {
  const char* operation;
  const char* name;
  const Tensor& tensor;
};

inline void require(bool condition, const Argument& argument, const std::string& what) {
  STD_TORCH_CHECK(condition, argument.operation, ": ", argument.name, " must ", what);
}

inline std::string shape_name(std::initializer_list<int64_t> shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text + ")";
}

inline void require_shape(const Argument& argument, std::initializer_list<int64_t> shape) {
  bool same = argument.tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t dimension = 0;
  for (const int64_t size : shape) same = same && argument.tensor.size(dimension++) == size;
  require(same, argument, "have the shape " + shape_name(shape));
}

// On the CPU, contiguous, of a shape and type.
inline void require_packed(const Argument& argument, std::initializer_list<int64_t> shape, ScalarType type) {
  require(argument.tensor.is_cpu(), argument, "be on the CPU");
  require_shape(argument, shape);
  require(argument.tensor.scalar_type() == type, argument,
          std::string("be ") + torch::headeronly::toString(type) + " like the operator's other arguments");
  require(argument.tensor.is_contiguous(), argument, "be contiguous");
}

// float32 or bfloat16.
inline void require_values(const Argument& argument) {
  const ScalarType type = argument.tensor.scalar_type();
  require(argument.tensor.is_cpu(), argument, "be on the CPU");
  require(type == ScalarType::Float || type == ScalarType::BFloat16, argument, "be float32 or bfloat16");
}

// (rows, columns) of a type with unit stride in its columns.
inline Rows rows_of(const Argument& argument, int64_t rows, int64_t columns, ScalarType type) {
  const Tensor& tensor = argument.tensor;
  require(tensor.is_cpu(), argument, "be on the CPU");
  require_shape(argument, {rows, columns});
  require(tensor.scalar_type() == type, argument, "have the type of the operator's first argument");
  require(columns <= 1 || rows == 0 || tensor.stride(1) == 1, argument, "have unit stride in its channels");
  return {tensor.mutable_data_ptr(), tensor.stride(0)};
}

}  // namespace gwsss_fast
