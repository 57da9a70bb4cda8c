// The library's operators for PyTorch: schemas and registration, with PyTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "gwsss_fast/dense_crf.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_crf(const Tensor& prob, const Tensor& image) {
  STD_TORCH_CHECK(prob.scalar_type() == ScalarType::Float && prob.dim() == 3,
                  "dense_crf: prob must be float32 (L, H, W)");
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Byte && image.dim() == 3 && image.size(2) == 3 &&
                      image.size(0) == prob.size(1) && image.size(1) == prob.size(2),
                  "dense_crf: image must be uint8 (H, W, 3) with the height and width of prob");
  STD_TORCH_CHECK(prob.is_cpu() && image.is_cpu(), "dense_crf: prob and image must be on the CPU");
  STD_TORCH_CHECK(prob.is_contiguous(), "dense_crf: prob must be contiguous");
  STD_TORCH_CHECK(image.is_contiguous(), "dense_crf: image must be contiguous");
}

gwsss_fast::DenseCrfOptions crf_options(double sxy_gaussian, double w_gaussian, double sxy_bilateral, double srgb,
                                        double w_bilateral, int64_t iterations) {
  return {static_cast<float>(sxy_gaussian),  static_cast<float>(w_gaussian),  static_cast<float>(sxy_bilateral),
          static_cast<float>(srgb), static_cast<float>(w_bilateral), iterations};
}

Tensor dense_crf(const Tensor& prob, const Tensor& image, double sxy_gaussian, double w_gaussian,
                 double sxy_bilateral, double srgb, double w_bilateral, int64_t iterations) {
  check_crf(prob, image);
  const auto options = crf_options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations);
  Tensor marginals = torch::stable::empty_like(prob);
  gwsss_fast::dense_crf(prob.const_data_ptr<float>(), image.const_data_ptr<uint8_t>(), prob.size(0), prob.size(1),
                        prob.size(2), options, marginals.mutable_data_ptr<float>());
  return marginals;
}

Tensor dense_crf_backward(const Tensor& grad, const Tensor& prob, const Tensor& image, double sxy_gaussian,
                          double w_gaussian, double sxy_bilateral, double srgb, double w_bilateral,
                          int64_t iterations) {
  check_crf(prob, image);
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Float && grad.is_cpu() && grad.is_contiguous() &&
                      grad.dim() == 3 && grad.size(0) == prob.size(0) && grad.size(1) == prob.size(1) &&
                      grad.size(2) == prob.size(2),
                  "dense_crf_backward: grad must be like prob: float32, on the CPU, contiguous, of its shape");
  const auto options = crf_options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations);
  Tensor grad_prob = torch::stable::empty_like(prob);
  gwsss_fast::dense_crf_backward(grad.const_data_ptr<float>(), prob.const_data_ptr<float>(),
                                 image.const_data_ptr<uint8_t>(), prob.size(0), prob.size(1), prob.size(2), options,
                                 grad_prob.mutable_data_ptr<float>());
  return grad_prob;
}

}  // namespace

STABLE_TORCH_LIBRARY(gwsss_fast_native, library) {
  library.def(
      "dense_crf(Tensor prob, Tensor image, float sxy_gaussian, float w_gaussian, float sxy_bilateral, float srgb, "
      "float w_bilateral, int iterations) -> Tensor");
  library.def(
      "dense_crf_backward(Tensor grad, Tensor prob, Tensor image, float sxy_gaussian, float w_gaussian, "
      "float sxy_bilateral, float srgb, float w_bilateral, int iterations) -> Tensor");
  library.def("dense_crf_forget() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("dense_crf", TORCH_BOX(&dense_crf));
  library.impl("dense_crf_backward", TORCH_BOX(&dense_crf_backward));
}

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CompositeExplicitAutograd, library) {
  library.impl("dense_crf_forget", TORCH_BOX(&gwsss_fast::dense_crf_forget));
}
