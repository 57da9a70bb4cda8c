// What the operators of the dense CRF ask of their arguments, on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "gwsss_fast/dense_crf.h"

namespace gwsss_fast {

inline void check_crf(const torch::stable::Tensor& prob, const torch::stable::Tensor& image,
                      torch::headeronly::DeviceType device) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(prob.scalar_type() == ScalarType::Float && prob.dim() == 3,
                  "dense_crf: prob must be float32 (L, H, W)");
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Byte && image.dim() == 3 && image.size(2) == 3 &&
                      image.size(0) == prob.size(1) && image.size(1) == prob.size(2),
                  "dense_crf: image must be uint8 (H, W, 3) with the height and width of prob");
  STD_TORCH_CHECK(prob.device().type() == device && image.device() == prob.device(),
                  "dense_crf: prob and image must be on ",
                  device == torch::headeronly::DeviceType::CPU ? "the CPU" : "one CUDA device");
  STD_TORCH_CHECK(prob.is_contiguous(), "dense_crf: prob must be contiguous");
  STD_TORCH_CHECK(image.is_contiguous(), "dense_crf: image must be contiguous");
}

inline void check_crf_gradient(const torch::stable::Tensor& grad, const torch::stable::Tensor& prob) {
  STD_TORCH_CHECK(grad.scalar_type() == prob.scalar_type() && grad.device() == prob.device() && grad.is_contiguous() &&
                      grad.dim() == 3 && grad.size(0) == prob.size(0) && grad.size(1) == prob.size(1) &&
                      grad.size(2) == prob.size(2),
                  "dense_crf_backward: grad must be like prob: float32, on its device, contiguous, of its shape");
}

inline DenseCrfOptions crf_options(double sxy_gaussian, double w_gaussian, double sxy_bilateral, double srgb,
                                   double w_bilateral, int64_t iterations) {
  return {static_cast<float>(sxy_gaussian),  static_cast<float>(w_gaussian), static_cast<float>(sxy_bilateral),
          static_cast<float>(srgb), static_cast<float>(w_bilateral), iterations};
}

}  // namespace gwsss_fast
