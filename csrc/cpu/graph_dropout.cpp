// Graph dropout (Eq. 11, 12): a position is read for its mean and, while it is still in the cache, once more for the
// product with the map. The drop map waits for the largest mean of the whole node, the importance map for nothing.

#include <cmath>
#include <limits>

#include <torch/csrc/stable/library.h>

#include "buffer.h"
#include "kernels.h"
#include "parallel.h"
#include "tensors.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kCached = int64_t{1} << 20;  // bytes of nodes a thread that both passes find in the cache
constexpr int64_t kBlock = int64_t{1} << 14;   // values that a thread takes at a time

struct Map {
  int64_t positions;
  const bool* keep_salient;  // (nodes)
  float threshold;
  float* s;
  float* slope;
};

// The importance map and its derivative at positions [begin, end) (Eq. 11, first case).
void importance(const Map& map, const float* o, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    map.s[row] = 1.0f / (1.0f + std::exp(-o[row]));
    map.slope[row] = map.s[row] * (1.0f - map.s[row]);
  }
}

// The drop map and its derivative at all positions of a node, which need the largest mean (Eq. 11, second case).
void drop(const Map& map, const float* o, int64_t node) {
  const int64_t begin = node * map.positions, end = begin + map.positions;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t row = begin; row < end; ++row) {
    if (!(o[row] <= largest)) largest = o[row];
    if (std::isnan(largest)) break;
  }
  const float limit = largest * map.threshold;
  for (int64_t row = begin; row < end; ++row) {
    map.slope[row] = o[row] < limit ? 1.0f : 0.0f;
    map.s[row] = o[row] * map.slope[row];
  }
}

// Rows [begin, end), in pieces that belong to one node each. drops: those whose map was made before; else the others'
// are made here, and means are made of all.
void run_block(const DropoutPass& pass, const Map& map, int64_t begin, int64_t end, bool drops) {
  while (begin < end) {
    const int64_t node = begin / map.positions, last = std::min(end, (node + 1) * map.positions);
    if (!drops && pass.grad == nullptr) kernels().dropout_means(pass, begin, last);
    if (!drops && map.keep_salient[node]) importance(map, pass.o, begin, last);
    if (drops != map.keep_salient[node]) kernels().dropout_scale(pass, begin, last);
    begin = last;
  }
}

// All nodes, as many at a time as stay in the cache between means and product.
void run(const DropoutPass& pass, int64_t nodes, const Map& map) {
  if (nodes == 0 || map.positions == 0) return;
  const int64_t bytes = map.positions * pass.channels * (pass.is_bfloat16 ? 2 : 4) * (pass.grad == nullptr ? 1 : 2);
  const int64_t together = std::max<int64_t>(1, kCached * threads() / std::max<int64_t>(bytes, 1));
  const int64_t block = std::max<int64_t>(1, kBlock / std::max<int64_t>(pass.channels, 1));
  std::vector<Phase> phases;
  for (int64_t first = 0; first < nodes; first += together) {
    const int64_t count = std::min(together, nodes - first), begin = first * map.positions;
    const int64_t end = (first + count) * map.positions, blocks = (end - begin + block - 1) / block;
    const auto blocks_of = [&, begin, end](bool drops) {
      return [&, begin, end, drops](int64_t number) {
        const int64_t at = begin + number * block;
        run_block(pass, map, at, std::min(at + block, end), drops);
      };
    };
    phases.push_back({blocks, blocks_of(false)});
    const bool* keep = map.keep_salient + first;
    if (std::all_of(keep, keep + count, [](bool salient) { return salient; })) continue;
    phases.push_back({count, [&, first](int64_t node) {
                        if (!map.keep_salient[first + node]) drop(map, pass.o, first + node);
                      }});
    phases.push_back({blocks, blocks_of(true)});
  }
  run_phases(phases);
}

struct Shape {
  int64_t nodes, positions, channels;
};

Shape check(const char* operation, const Tensor& g, const Tensor& keep_salient) {
  const Argument argument{operation, "g", g};
  require(g.dim() == 4, argument, "be (B, K, N, C)");
  require_values(argument);
  require(g.is_contiguous(), argument, "be contiguous");
  require(g.size(3) > 0 || g.numel() == 0, argument, "have channels");
  require_packed({operation, "keep_salient", keep_salient}, {g.size(0), g.size(1)}, ScalarType::Bool);
  return {g.size(0) * g.size(1), g.size(2), g.size(3)};
}

void finish(DropoutPass pass, const Shape& shape, const Tensor& keep_salient, double threshold) {
  Buffer<float> s(shape.nodes * shape.positions), slope(shape.nodes * shape.positions);
  pass.s = s.data();
  pass.slope = slope.data();
  run(pass, shape.nodes,
      {shape.positions, keep_salient.const_data_ptr<bool>(), static_cast<float>(threshold), s.data(), slope.data()});
}

void graph_dropout(const Tensor& g, const Tensor& keep_salient, double threshold, const Tensor& out, const Tensor& o) {
  constexpr auto name = "graph_dropout";
  const Shape shape = check(name, g, keep_salient);
  const ScalarType type = g.scalar_type();
  require_packed({name, "out", out}, {g.size(0), g.size(1), g.size(2), g.size(3)}, type);
  require_packed({name, "o", o}, {g.size(0), g.size(1), g.size(2)}, ScalarType::Float);
  DropoutPass pass{type == ScalarType::BFloat16, shape.channels, g.const_data_ptr(), nullptr, out.mutable_data_ptr(),
                   o.mutable_data_ptr<float>(), nullptr, nullptr};
  finish(pass, shape, keep_salient, threshold);
}

void graph_dropout_backward(const Tensor& grad, const Tensor& g, const Tensor& o, const Tensor& keep_salient,
                            double threshold, const Tensor& grad_g) {
  constexpr auto name = "graph_dropout_backward";
  const Shape shape = check(name, g, keep_salient);
  const ScalarType type = g.scalar_type();
  const std::initializer_list<int64_t> sizes = {g.size(0), g.size(1), g.size(2), g.size(3)};
  require_packed({name, "grad", grad}, sizes, type);
  require_packed({name, "grad_g", grad_g}, sizes, type);
  require_packed({name, "o", o}, {g.size(0), g.size(1), g.size(2)}, ScalarType::Float);
  DropoutPass pass{type == ScalarType::BFloat16, shape.channels, g.const_data_ptr(), grad.const_data_ptr(),
                   grad_g.mutable_data_ptr(), const_cast<float*>(o.const_data_ptr<float>()), nullptr, nullptr};
  finish(pass, shape, keep_salient, threshold);
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("graph_dropout", TORCH_BOX(&gwsss_fast::graph_dropout));
  library.impl("graph_dropout_backward", TORCH_BOX(&gwsss_fast::graph_dropout_backward));
}
