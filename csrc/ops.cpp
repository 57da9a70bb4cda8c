// The library's operators for PyTorch: schemas and registration, with PyTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "crf_arguments.h"

namespace {

using gwsss_fast::check_crf;
using gwsss_fast::check_crf_gradient;
using gwsss_fast::crf_options;
using torch::headeronly::DeviceType;
using torch::stable::Tensor;

Tensor dense_crf(const Tensor& prob, const Tensor& image, double sxy_gaussian, double w_gaussian,
                 double sxy_bilateral, double srgb, double w_bilateral, int64_t iterations) {
  check_crf(prob, image, DeviceType::CPU);
  const auto options = crf_options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations);
  Tensor marginals = torch::stable::empty_like(prob);
  gwsss_fast::dense_crf(prob.const_data_ptr<float>(), image.const_data_ptr<uint8_t>(), prob.size(0), prob.size(1),
                        prob.size(2), options, marginals.mutable_data_ptr<float>());
  return marginals;
}

Tensor dense_crf_backward(const Tensor& grad, const Tensor& prob, const Tensor& image, double sxy_gaussian,
                          double w_gaussian, double sxy_bilateral, double srgb, double w_bilateral,
                          int64_t iterations) {
  check_crf(prob, image, DeviceType::CPU);
  check_crf_gradient(grad, prob);
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
  // For the tests: the steps of the GPU's implementation, run on the CPU, and where both put pixels.
  library.def("dense_crf_simplices(Tensor image, float sxy, float srgb, bool steps) -> (Tensor, Tensor, int)");
  library.def(
      "dense_crf_steps(Tensor prob, Tensor image, float sxy_gaussian, float w_gaussian, float sxy_bilateral, "
      "float srgb, float w_bilateral, int iterations) -> Tensor");
  library.def(
      "dense_crf_steps_backward(Tensor grad, Tensor prob, Tensor image, float sxy_gaussian, float w_gaussian, "
      "float sxy_bilateral, float srgb, float w_bilateral, int iterations) -> Tensor");

  library.def("co_attention(Tensor p, Tensor q, Tensor g, bool transpose) -> (Tensor, Tensor)");
  library.def(
      "co_attention_backward(Tensor grad, Tensor p, Tensor q, Tensor g, Tensor row_lse, bool transpose) -> "
      "(Tensor, Tensor, Tensor)");
  library.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? residual, Tensor? message, float message_scale) -> "
      "(Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor row_lse) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("dense_crf", TORCH_BOX(&dense_crf));
  library.impl("dense_crf_backward", TORCH_BOX(&dense_crf_backward));
}

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CompositeExplicitAutograd, library) {
  library.impl("dense_crf_forget", TORCH_BOX(&gwsss_fast::dense_crf_forget));
}
