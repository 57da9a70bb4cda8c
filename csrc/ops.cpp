// The library's operators for PyTorch: schemas and registration, with PyTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/parallel.h"
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

// Images by the side of each other where there are as many as threads: each is then one thread's, since what runs in
// parallel already is not divided further. Two threads are as fast on one image after another, which share the cache.
std::vector<Tensor> dense_crf_images(const std::vector<Tensor>& probs, const std::vector<Tensor>& images,
                                     double sxy_gaussian, double w_gaussian, double sxy_bilateral, double srgb,
                                     double w_bilateral, int64_t iterations) {
  STD_TORCH_CHECK(probs.size() == images.size(), "dense_crf_images: probs and images must be equally many");
  for (size_t i = 0; i < probs.size(); ++i) check_crf(probs[i], images[i], DeviceType::CPU);
  std::vector<Tensor> marginals;
  for (const Tensor& prob : probs) marginals.push_back(torch::stable::empty_like(prob));
  const auto options = crf_options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations);
  const auto one = [&](int64_t i) {
    gwsss_fast::dense_crf(probs[i].const_data_ptr<float>(), images[i].const_data_ptr<uint8_t>(), probs[i].size(0),
                          probs[i].size(1), probs[i].size(2), options, marginals[i].mutable_data_ptr<float>());
  };
  const auto count = static_cast<int64_t>(probs.size());
  if (gwsss_fast::threads() > 2 && count >= gwsss_fast::threads())
    gwsss_fast::parallel_tasks(count, one);
  else
    for (int64_t i = 0; i < count; ++i) one(i);
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
      "dense_crf_images(Tensor[] probs, Tensor[] images, float sxy_gaussian, float w_gaussian, float sxy_bilateral, "
      "float srgb, float w_bilateral, int iterations) -> Tensor[]");
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

  // Of the type of `like`, in memory that is used again.
  library.def("new_empty(Tensor like, int[] shape) -> Tensor");

  // Graph dropout. r: (B,) or (B, K), float32, or bool: whether below the rate. fill: results hold NaN before they are
  // written. past_caches: they are written to memory, not to the caches; None: where these could not hold them.
  library.def(
      "graph_dropout_on_cpu(Tensor g, Tensor r, float drop_rate, float drop_threshold, bool fill, "
      "bool? past_caches=None) -> (Tensor, Tensor)");
  library.def(
      "graph_dropout_on_cpu_backward(Tensor grad, Tensor g, Tensor o, Tensor r, float drop_rate, "
      "float drop_threshold, bool fill, bool? past_caches=None) -> Tensor");
  // On a GPU: results are written to the last arguments. keep_salient: bool (B, K).
  library.def(
      "graph_dropout(Tensor g, Tensor keep_salient, float drop_threshold, Tensor(a!) out, Tensor(b!) o) -> ()");
  library.def(
      "graph_dropout_backward(Tensor grad, Tensor g, Tensor o, Tensor keep_salient, float drop_threshold, "
      "Tensor(a!) grad_g) -> ()");

  // ConvGRU on rows (R, C) or, for opened, back and from_gates, (R, 2 C): unit stride in the channels.
  library.def("conv_gru_gates(Tensor opened, Tensor h, Tensor(a!) z, Tensor(b!) r, Tensor(c!) reset) -> ()");
  library.def("conv_gru_blend(Tensor(a!) c, Tensor h, Tensor z, Tensor(b!) out) -> ()");
  library.def(
      "conv_gru_slopes(Tensor grad, Tensor h, Tensor z, Tensor c, Tensor(a!) slope_z, Tensor(b!) slope_c) -> ()");
  library.def("conv_gru_reset(Tensor grad_reset, Tensor h, Tensor r, Tensor(a!) slope_r, Tensor(b!) reset) -> ()");
  library.def(
      "conv_gru_join(Tensor grad, Tensor back, Tensor from_gates, Tensor z, Tensor r, Tensor(a!) grad_m, "
      "Tensor(b!) grad_h) -> ()");

  // Winograd's convolution, float32: 16 planes to or from images (M, H, W, C) or a weight (O, I, 3, 3).
  library.def("winograd_input(Tensor images, Tensor(a!)[] planes) -> ()");
  library.def("winograd_output(Tensor[] planes, Tensor? bias, Tensor(a!) images) -> ()");
  library.def("winograd_output_gradient(Tensor images, Tensor(a!)[] planes) -> ()");
  library.def("winograd_weight(Tensor weight, bool transposed, Tensor(a!)[] planes) -> ()");
  library.def("winograd_weight_gradient(Tensor[] planes, Tensor(a!) weight) -> ()");

  // Edge readout of one group, float32.
  library.def("edge_readout_positions(Tensor grams) -> Tensor");
  library.def("edge_readout_positions_backward(Tensor(a!) grams, Tensor toward) -> Tensor");
  library.def("edge_readout_channels(Tensor scores, Tensor mean) -> Tensor");
  library.def("edge_readout_channels_backward(Tensor(a!) scores, Tensor mean, Tensor grad) -> Tensor");
  library.def("edge_readout_mirror(Tensor(a!) matrices, bool add) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("dense_crf", TORCH_BOX(&dense_crf));
  library.impl("dense_crf_backward", TORCH_BOX(&dense_crf_backward));
  library.impl("dense_crf_images", TORCH_BOX(&dense_crf_images));
}

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CompositeExplicitAutograd, library) {
  library.impl("dense_crf_forget", TORCH_BOX(&gwsss_fast::dense_crf_forget));
}
