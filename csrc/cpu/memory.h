// Tensors in memory that is used again: PyTorch takes large ones from the system each time, which has to clear them
// page by page; that takes longer than most of what is computed here.
#pragma once

#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace gwsss_fast {

// Uninitialised, contiguous, float32 or bfloat16.
torch::stable::Tensor empty_tensor(torch::headeronly::ScalarType type, const std::vector<int64_t>& shape);

// Fills such a tensor with NaN.
void poison(const torch::stable::Tensor& tensor);

}  // namespace gwsss_fast
