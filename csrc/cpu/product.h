// Products of matrices by the library that PyTorch brings, through its stable C interface.
#pragma once

#include <cstdint>
#include <type_traits>

#include "buffer.h"

struct AtenTensorOpaque;

namespace gwsss_fast {

// The bits of a bfloat16: the upper half of a float32.
enum class BFloat16 : uint16_t {};

// A matrix in memory of someone else: float32 or bfloat16.
struct Matrix {
  void* data;
  bool is_bfloat16;
  int64_t rows, columns;
  int64_t row_stride, column_stride;

  int64_t value_bytes() const { return is_bfloat16 ? 2 : 4; }
  Matrix transposed() const { return {data, is_bfloat16, columns, rows, column_stride, row_stride}; }
};

// (rows, columns) at `data`, whose rows follow each other, or lie `stride` apart.
template <class T>
Matrix matrix(T* data, int64_t rows, int64_t columns, int64_t stride = 0) {
  using Value = std::remove_const_t<T>;
  static_assert(std::is_same_v<Value, float> || std::is_same_v<Value, BFloat16>);
  const int64_t row_stride = stride > 0 ? stride : columns;
  return {const_cast<Value*>(data), std::is_same_v<Value, BFloat16>, rows, columns, row_stride, 1};
}

// out = a b, or out += a b. One type of all three; sums are in float32 and rounded once. By all of PyTorch's threads,
// in a parallel region by the calling one alone. `out` has rows without gaps and may not overlap with the others.
void multiply(const Matrix& a, const Matrix& b, const Matrix& out, bool add = false);

// a b in memory of its own, without gaps.
class Product {
 public:
  Product(const Matrix& a, const Matrix& b);
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product();

  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  Buffer<char> buffer_;
  AtenTensorOpaque* tensor_ = nullptr;  // that has the values, if it is not `buffer_`
  void* data_;
};

}  // namespace gwsss_fast
