// Self-attention: one edge of every node to itself, and its registration with PyTorch.

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "arguments.h"
#include "edges.h"

namespace gwsss_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

EdgeSizes check(const Tensor& q, const Tensor& k, const Tensor& v) {
  const char* name = "attention";
  check_layout(name, "v", v, 3, v.scalar_type());
  check_layout(name, "q", q, 3, v.scalar_type());
  check_like(name, "k", k, "q", q);
  STD_TORCH_CHECK(q.size(0) == v.size(0) && q.size(1) == v.size(1), "attention: q must agree with v but in channels");
  STD_TORCH_CHECK(q.size(2) > 0, "attention: q has no channels");
  STD_TORCH_CHECK(v.size(2) > 0, "attention: v has no channels");
  return {v.size(1), q.size(2), v.size(2)};
}

template <class T>
void run(const EdgeSizes& sizes, const Tensor& q, const Tensor& k, const Tensor& v, const T* residual,
         const T* message, float message_scale, Tensor& out, Tensor& row_lse) {
  const int64_t nodes = v.size(0), factor = sizes.positions * sizes.rank, node = sizes.positions * sizes.channels;
  const Widened<T> wide_q(values_of<T>(q), nodes * factor), wide_k(values_of<T>(k), nodes * factor);
  std::vector<Receiver<T>> receivers;
  for (int64_t i = 0; i < nodes; ++i)
    receivers.push_back({{{wide_q.data() + i * factor, wide_k.data() + i * factor, values_of<T>(v) + i * node,
                           row_lse.mutable_data_ptr<float>() + i * sizes.positions}},
                         values_of<T>(out) + i * node,
                         residual != nullptr ? residual + i * node : nullptr,
                         message != nullptr ? message + i * node : nullptr,
                         message_scale});
  attend(sizes, receivers);
}

template <class T>
void run_with(const EdgeSizes& sizes, const Tensor& q, const Tensor& k, const Tensor& v,
              const std::optional<Tensor>& residual, const std::optional<Tensor>& message, double message_scale,
              Tensor& out, Tensor& row_lse) {
  run<T>(sizes, q, k, v, residual ? values_of<T>(*residual) : nullptr, message ? values_of<T>(*message) : nullptr,
         static_cast<float>(message_scale), out, row_lse);
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> residual, std::optional<Tensor> message,
                                     double message_scale) {
  const EdgeSizes sizes = check(q, k, v);
  if (residual) check_like("attention", "residual", *residual, "v", v);
  if (message) check_like("attention", "message", *message, "v", v);
  Tensor out = torch::stable::empty_like(v);
  Tensor row_lse = torch::stable::new_empty(v, {v.size(0), v.size(1)}, ScalarType::Float);
  (is_bfloat16(v) ? run_with<BFloat16> : run_with<float>)(sizes, q, k, v, residual, message, message_scale, out,
                                                          row_lse);
  return {out, row_lse};
}

template <class T>
void run_backward(const EdgeSizes& sizes, const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& row_lse, Tensor (&grads)[3]) {
  const int64_t nodes = v.size(0), factor = sizes.positions * sizes.rank, node = sizes.positions * sizes.channels;
  const Widened<T> wide_q(values_of<T>(q), nodes * factor), wide_k(values_of<T>(k), nodes * factor);
  FloatSums<T> of_q(grads[0], nodes * factor), of_k(grads[1], nodes * factor), of_v(grads[2], nodes * node);
  std::vector<EdgeGradient<T>> edges;
  for (int64_t i = 0; i < nodes; ++i)
    edges.push_back({wide_q.data() + i * factor, wide_k.data() + i * factor, values_of<T>(q) + i * factor,
                     values_of<T>(k) + i * factor, values_of<T>(v) + i * node, values_of<T>(grad) + i * node,
                     row_lse.const_data_ptr<float>() + i * sizes.positions, of_q.data() + i * factor,
                     of_k.data() + i * factor, of_v.data() + i * node});
  attend_backward<T>(sizes, {edges});
  of_q.give(values_of<T>(grads[0]));
  of_k.give(values_of<T>(grads[1]));
  of_v.give(values_of<T>(grads[2]));
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& row_lse) {
  const EdgeSizes sizes = check(q, k, v);
  check_like("attention_backward", "grad", grad, "v", v);
  check_layout("attention_backward", "row_lse", row_lse, 2, ScalarType::Float);
  STD_TORCH_CHECK(row_lse.size(0) == v.size(0) && row_lse.size(1) == v.size(1),
                  "attention_backward: row_lse must have a number for each row of q");
  using torch::stable::empty_like;
  Tensor grads[] = {empty_like(q), empty_like(k), empty_like(v)};
  (is_bfloat16(v) ? run_backward<BFloat16> : run_backward<float>)(sizes, grad, q, k, v, row_lse, grads);
  return {grads[0], grads[1], grads[2]};
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("attention", TORCH_BOX(&gwsss_fast::attention));
  library.impl("attention_backward", TORCH_BOX(&gwsss_fast::attention_backward));
}
