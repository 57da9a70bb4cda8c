// The softmaxes of the edge readout (Eq. 14 to 17) of one group, from scores that matrix products have made.

#include <algorithm>
#include <cstring>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "buffer.h"
#include "kernels.h"
#include "parallel.h"
#include "tensors.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kParts = 16;  // sums over rows are made in so many parts, whatever the number of threads

// Where part `number` of `count` items ends.
int64_t part_end(int64_t count, int64_t number) { return (number + 1) * count / kParts; }
int64_t part_begin(int64_t count, int64_t number) { return number * count / kParts; }

// work(begin, end, scratch, sums) for each part of `rows` rows, in parallel; the sums are those of all parts.
template <class Work>
Buffer<float> sum_of_parts(int64_t rows, int64_t scratch, int64_t sums, const Work& work) {
  Buffer<float> parts(kParts * (scratch + sums)), total(sums);
  parallel_tasks(kParts, [&](int64_t number) {
    float* own = parts.data() + number * (scratch + sums);
    std::fill_n(own + scratch, sums, 0.0f);
    work(part_begin(rows, number), part_end(rows, number), own, own + scratch);
  });
  std::fill_n(total.data(), sums, 0.0f);
  for (int64_t number = 0; number < kParts; ++number)
    for (int64_t at = 0; at < sums; ++at) total[at] += parts[number * (scratch + sums) + scratch + at];
  return total;
}

Tensor make(std::initializer_list<int64_t> shape) {
  return torch::stable::empty({shape.begin(), shape.size()}, ScalarType::Float);
}

// Lines of `size` values, padded with zeros.
Buffer<float> padded(const float* from, int64_t lines, int64_t size) {
  const int64_t pitch = line_pitch(size);
  Buffer<float> to(lines * pitch);
  std::fill_n(to.data(), to.size(), 0.0f);
  for (int64_t line = 0; line < lines; ++line)
    std::memcpy(to.data() + line * pitch, from + line * size, size * sizeof(float));
  return to;
}

// Column means of the softmaxes of all edges, plus 1 / N for mean(x): (K, K, N).
Tensor weights_of(const EdgePositions& pass) {
  const int64_t nodes = pass.nodes, size = pass.positions, pitch = line_pitch(size), pairs = nodes * (nodes + 1) / 2;
  const Buffer<float> sums = sum_of_parts(size, (1 + nodes) * pitch, pairs * pitch,
                                          [&](int64_t begin, int64_t end, float* scratch, float* to) {
                                            kernels().edge_positions(pass, begin, end, scratch, to);
                                          });
  Tensor weights = make({nodes, nodes, size});
  float* to = weights.mutable_data_ptr<float>();
  const float share = 1.0f / static_cast<float>(size);
  const float* from = sums.data();
  for (int64_t i = 0; i < nodes; ++i)
    for (int64_t j = i; j < nodes; ++j, from += pitch)
      for (int64_t at = 0; at < size; ++at)
        to[(i * nodes + j) * size + at] = to[(j * nodes + i) * size + at] = from[at] + share;
  return weights;
}

void check_grams(const char* operation, const Tensor& grams) {
  const Argument argument{operation, "grams", grams};
  require(grams.dim() == 3 && grams.size(1) == grams.size(2), argument, "be (K, N, N)");
  require_packed(argument, {grams.size(0), grams.size(1), grams.size(1)}, ScalarType::Float);
  require(grams.size(1) > 0, argument, "have positions");
}

Tensor positions(const Tensor& grams) {
  check_grams("edge_readout_positions", grams);
  return weights_of({grams.size(0), grams.size(1), const_cast<float*>(grams.const_data_ptr<float>()), nullptr});
}

// Replaces the Gram matrices by their gradient; toward (K, K, N): t_ij + t_ji with t_ij = g_i times the gradient of
// edge (i, j)'s first half. Returns what `positions` returns.
Tensor positions_backward(const Tensor& grams, const Tensor& toward) {
  constexpr auto name = "edge_readout_positions_backward";
  check_grams(name, grams);
  const int64_t nodes = grams.size(0), size = grams.size(1), pitch = line_pitch(size);
  require_packed({name, "toward", toward}, {nodes, nodes, size}, ScalarType::Float);
  Buffer<float> of_pairs(nodes * (nodes + 1) / 2 * pitch);
  std::fill_n(of_pairs.data(), of_pairs.size(), 0.0f);
  float* to = of_pairs.data();
  for (int64_t i = 0; i < nodes; ++i)
    for (int64_t j = i; j < nodes; ++j, to += pitch)
      std::memcpy(to, toward.const_data_ptr<float>() + (i * nodes + j) * size, size * sizeof(float));
  return weights_of({nodes, size, grams.mutable_data_ptr<float>(), of_pairs.data()});
}

void check_channels(const char* operation, const Tensor& scores, const Tensor& mean) {
  const Argument argument{operation, "mean", mean};
  require(mean.dim() == 2, argument, "be (K, C)");
  require_packed(argument, {mean.size(0), mean.size(1)}, ScalarType::Float);
  const int64_t size = mean.numel();
  require_packed({operation, "scores", scores}, {size, size}, ScalarType::Float);
}

// softmax of [A_ii, A_ij] times [mean_i, mean_j], plus mean_i: (K, K, C).
Tensor channels(const Tensor& scores, const Tensor& mean) {
  check_channels("edge_readout_channels", scores, mean);
  const int64_t nodes = mean.size(0), size = mean.size(1);
  Tensor out = make({nodes, nodes, size});
  if (out.numel() == 0) return out;
  const Buffer<float> means = padded(mean.const_data_ptr<float>(), nodes, size);
  const EdgeChannels pass{nodes, size, const_cast<float*>(scores.const_data_ptr<float>()), means.data(),
                          out.mutable_data_ptr<float>(), nullptr};
  sum_of_parts(nodes * size, nodes * (line_pitch(size) + 6), 0,
               [&](int64_t begin, int64_t end, float* scratch, float*) {
                 kernels().edge_channels(pass, begin, end, scratch);
               });
  return out;
}

// Replaces the scores by their gradient and returns that of the means through the weights, (K, C).
Tensor channels_backward(const Tensor& scores, const Tensor& mean, const Tensor& grad) {
  constexpr auto name = "edge_readout_channels_backward";
  check_channels(name, scores, mean);
  const int64_t nodes = mean.size(0), size = mean.size(1), pitch = line_pitch(size);
  require_packed({name, "grad", grad}, {nodes, nodes, size}, ScalarType::Float);
  Tensor grad_mean = make({nodes, size});
  if (grad_mean.numel() == 0) return grad_mean;
  const Buffer<float> means = padded(mean.const_data_ptr<float>(), nodes, size);
  const EdgeChannels pass{nodes, size, scores.mutable_data_ptr<float>(), means.data(), nullptr,
                          grad.const_data_ptr<float>()};
  const Buffer<float> sums =
      sum_of_parts(nodes * size, nodes * (pitch + 6), nodes * pitch,
                   [&](int64_t begin, int64_t end, float* scratch, float* to) {
                     kernels().edge_channels_backward(pass, begin, end, scratch, to);
                   });
  for (int64_t node = 0; node < nodes; ++node)
    std::memcpy(grad_mean.mutable_data_ptr<float>() + node * size, sums.data() + node * pitch, size * sizeof(float));
  return grad_mean;
}

void mirror(const Tensor& matrices, bool add) {
  constexpr auto name = "edge_readout_mirror";
  const Argument argument{name, "matrices", matrices};
  require(matrices.dim() == 3 && matrices.size(1) == matrices.size(2), argument, "be (count, size, size)");
  const int64_t count = matrices.size(0), size = matrices.size(1), tiles = (size + kMirror - 1) / kMirror;
  require_packed(argument, {count, size, size}, ScalarType::Float);
  float* data = matrices.mutable_data_ptr<float>();
  parallel_tasks(count * tiles, [&](int64_t number) {
    kernels().mirror({data + number / tiles * size * size, size, add}, number % tiles, number % tiles + 1);
  });
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("edge_readout_positions", TORCH_BOX(&gwsss_fast::positions));
  library.impl("edge_readout_positions_backward", TORCH_BOX(&gwsss_fast::positions_backward));
  library.impl("edge_readout_channels", TORCH_BOX(&gwsss_fast::channels));
  library.impl("edge_readout_channels_backward", TORCH_BOX(&gwsss_fast::channels_backward));
  library.impl("edge_readout_mirror", TORCH_BOX(&gwsss_fast::mirror));
}
