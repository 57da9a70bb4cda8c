// The operators of graph dropout on a GPU.
#ifdef USE_CUDA

#include <torch/csrc/stable/library.h>

#include <initializer_list>
#include <utility>
#include <vector>

#include "arrays.h"
#include "graph_dropout.h"

namespace gwsss_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What an operator is called with; `values` have the shape (B, K, N, C) and the type of the first, g.
struct Arguments {
  const char* operation;
  std::vector<std::pair<const char*, Tensor>> values;
  Tensor keep_salient;  // (B, K)
  Tensor o;             // (B, K, N)

  void check(const char* name, const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape) const {
    const Tensor& g = values[0].second;
    STD_TORCH_CHECK(tensor.device() == g.device(), operation, ": ", name, " must be on the device of g");
    STD_TORCH_CHECK(tensor.scalar_type() == type, operation, ": ", name, " must be ",
                    torch::headeronly::toString(type));
    bool same = tensor.dim() == static_cast<int64_t>(shape.size());
    int64_t dimension = 0;
    for (const int64_t size : shape) same = same && tensor.size(dimension++) == size;
    STD_TORCH_CHECK(same, operation, ": ", name, " must have the shape that goes with g (B, K, N, C)");
    STD_TORCH_CHECK(tensor.is_contiguous(), operation, ": ", name, " must be contiguous");
  }

  DropoutCall call(double threshold) const {
    const Tensor& g = values[0].second;
    STD_TORCH_CHECK(g.dim() == 4, operation, ": g must be (B, K, N, C)");
    const ScalarType type = g.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, operation,
                    ": g must be float32, float16 or bfloat16");
    for (const auto& [name, tensor] : values)
      check(name, tensor, type, {g.size(0), g.size(1), g.size(2), g.size(3)});
    check("keep_salient", keep_salient, ScalarType::Bool, {g.size(0), g.size(1)});
    check("o", o, ScalarType::Float, {g.size(0), g.size(1), g.size(2)});
    const auto kind = type == ScalarType::Float ? DropoutCall::float32
        : type == ScalarType::Half              ? DropoutCall::float16
                                                : DropoutCall::bfloat16;
    return {kind, g.const_data_ptr(), values.size() > 2 ? values[2].second.const_data_ptr() : nullptr,
            values[1].second.mutable_data_ptr(), o.mutable_data_ptr<float>(), keep_salient.const_data_ptr<bool>(),
            g.size(0) * g.size(1), g.size(2), g.size(3), static_cast<float>(threshold)};
  }
};

void run_on_gpu(const DropoutCall& call, const Tensor& g) {
  const Place place(g);
  if (g.numel() > 0) start_graph_dropout(call, place.stream());
}

void forward(const Tensor& g, const Tensor& keep_salient, double threshold, const Tensor& out, const Tensor& o) {
  run_on_gpu(Arguments{"graph_dropout", {{"g", g}, {"out", out}}, keep_salient, o}.call(threshold), g);
}

void backward(const Tensor& grad, const Tensor& g, const Tensor& o, const Tensor& keep_salient, double threshold,
              const Tensor& grad_g) {
  const Arguments arguments{"graph_dropout_backward", {{"g", g}, {"grad_g", grad_g}, {"grad", grad}}, keep_salient, o};
  run_on_gpu(arguments.call(threshold), g);
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, GWSSS_GPU_KEY, library) {
  library.impl("graph_dropout", TORCH_BOX(&gwsss_fast::forward));
  library.impl("graph_dropout_backward", TORCH_BOX(&gwsss_fast::backward));
}

#endif
