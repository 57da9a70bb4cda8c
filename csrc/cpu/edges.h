// What attention and co-attention share: weighted sums of senders' values by the softmax of scores, block by block.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "product.h"

namespace gwsss_fast {

// N positions of a node, D channels of the factors of its scores, C of its values.
struct EdgeSizes {
  int64_t positions, rank, channels;
};

// One of a receiver's senders. T: float, or BFloat16 with factors widened to float.
template <class T>
struct Sender {
  const float* left;   // (N, D), the receiver's own for this sender
  const float* right;  // (N, D)
  const T* values;     // (N, C)
  float* row_lse;      // (N): written
};

// out = sum over senders of softmax_rows(left right^T) values, + residual + scale * message where there are any.
template <class T>
struct Receiver {
  std::vector<Sender<T>> senders;
  T* out;  // (N, C)
  const T* residual = nullptr;
  const T* message = nullptr;
  float message_scale = 1;
};

template <class T>
void attend(const EdgeSizes& sizes, const std::vector<Receiver<T>>& receivers);

// The gradients of one edge. Sums: they are added to, so edges that share one must not run together.
template <class T>
struct EdgeGradient {
  const float* left;  // (N, D), the receiver's
  const float* right;
  const T* own_left;  // the same in T
  const T* own_right;
  const T* values;       // (N, C), the sender's
  const T* grad;         // (N, C), of the receiver's messages
  const float* row_lse;  // (N)
  float* grad_left;
  float* grad_right;
  float* grad_values;
};

// Edges of one round run together, rounds one after another.
template <class T>
void attend_backward(const EdgeSizes& sizes, const std::vector<std::vector<EdgeGradient<T>>>& rounds);

// Values of T as float: the same memory, or a copy.
template <class T>
class Widened {
 public:
  Widened(const T* values, int64_t count);
  const float* data() const { return data_; }

 private:
  Buffer<float> copy_;
  const float* data_;
};

// to = a + b, or b alone where a is null.
template <class T>
void narrow(const float* a, const float* b, int64_t count, T* to);

}  // namespace gwsss_fast
