// Graph dropout (Eq. 11, 12) in one pass: a few positions are read for their means and, while the nearest cache still
// has them, once more for the product with the map. The drop map would have to wait for the largest mean of the whole
// node; as it keeps most positions, all are written as if kept, and those that it drops once more when that is known.

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "buffer.h"
#include "kernels.h"
#include "memory.h"
#include "parallel.h"
#include "tensors.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kTogether = int64_t{1} << 23;  // bytes of nodes before dropped positions are written again
constexpr int64_t kPiece = int64_t{1} << 14;     // values that a thread takes at a time
constexpr int64_t kClose = int64_t{1} << 11;     // values between the two times that they are read

struct Shape {
  int64_t groups, images, positions, channels;

  int64_t nodes() const { return groups * images; }
  int64_t rows() const { return nodes() * positions; }
};

// The larger one, or NaN if either is.
float larger(float a, float b) { return std::isnan(a) || a > b ? a : b; }

// A call. Work is dealt out by pieces: rows of one node.
class Dropout {
 public:
  // pass: but for the map. salient: of each node, whether it takes the importance map.
  Dropout(const DropoutPass& pass, const Shape& shape, const std::vector<char>& salient, double threshold)
      : pass_(pass),
        shape_(shape),
        salient_(salient),
        threshold_(static_cast<float>(threshold)),
        piece_rows_(std::max<int64_t>(1, kPiece / std::max<int64_t>(shape.channels, 1))),
        pieces_((shape.positions + piece_rows_ - 1) / piece_rows_),
        largest_(shape.nodes() * pieces_),
        map_(2 * shape.rows()) {
    pass_.s = map_.data();
    pass_.slope = slope();
  }

  void forward() {
    if (shape_.rows() == 0) return;
    const int64_t bytes = shape_.positions * shape_.channels * (pass_.is_bfloat16 ? 2 : 4);
    const int64_t together = std::max<int64_t>(1, kTogether / std::max<int64_t>(bytes, 1));
    std::vector<Phase> phases;
    for (int64_t first = 0; first < shape_.nodes(); first += together) {
      const int64_t last = std::min(first + together, shape_.nodes()), count = (last - first) * pieces_;
      const bool drop = drops(first, last);
      phases.push_back({count, [this, first](int64_t i) { write(first * pieces_ + i); }, Phase::own, drop});
      if (drop)
        phases.push_back({count, [this, first](int64_t i) { drop_rows(first * pieces_ + i); }, Phase::own, false});
    }
    run_phases(phases);
  }

  // The means are known.
  void backward() {
    if (shape_.rows() == 0) return;
    const int64_t count = shape_.nodes() * pieces_;
    std::vector<Phase> phases;
    if (drops(0, shape_.nodes())) phases.push_back({count, [this](int64_t piece) { note_largest(piece); }});
    phases.push_back({count, [this](int64_t piece) {
                        if (salient_[piece / pieces_])
                          importance(first_row(piece), end_row(piece));
                        else
                          drop(piece);
                        kernels().dropout_scale(pass_, first_row(piece), end_row(piece));
                      }});
    run_phases(phases);
  }

 private:
  bool drops(int64_t first, int64_t last) const {
    return !std::all_of(salient_.begin() + first, salient_.begin() + last, [](char salient) { return salient; });
  }

  int64_t first_row(int64_t piece) const { return piece / pieces_ * shape_.positions + piece % pieces_ * piece_rows_; }

  int64_t end_row(int64_t piece) const {
    return std::min(first_row(piece) + piece_rows_, (piece / pieces_ + 1) * shape_.positions);
  }

  // Means and products, of the drop map as if it kept all.
  void write(int64_t piece) {
    const int64_t close = std::max<int64_t>(1, kClose / std::max<int64_t>(shape_.channels, 1));
    for (int64_t begin = first_row(piece), last = end_row(piece); begin < last; begin += close) {
      const int64_t end = std::min(begin + close, last);
      kernels().dropout_means(pass_, begin, end);
      if (salient_[piece / pieces_])
        importance(begin, end);
      else
        std::copy(pass_.o + begin, pass_.o + end, map_.data() + begin);
      kernels().dropout_scale(pass_, begin, end);
    }
    if (!salient_[piece / pieces_]) note_largest(piece);
  }

  // Positions that the drop map does not keep, once more: 0, or NaN where it must be seen.
  void drop_rows(int64_t piece) {
    if (salient_[piece / pieces_]) return;
    drop(piece);
    for (int64_t row = first_row(piece); row < end_row(piece); ++row)
      if (map_[row] != pass_.o[row]) kernels().dropout_scale(pass_, row, row + 1);
  }

  void note_largest(int64_t piece) {
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t row = first_row(piece); row < end_row(piece); ++row) largest = larger(largest, pass_.o[row]);
    largest_[piece] = largest;
  }

  // The map and its derivative (Eq. 11, first case).
  void importance(int64_t begin, int64_t end) {
    float* s = map_.data();
    for (int64_t row = begin; row < end; ++row) {
      s[row] = 1.0f / (1.0f + std::exp(-pass_.o[row]));
      slope()[row] = s[row] * (1.0f - s[row]);
    }
  }

  // The same, second case.
  void drop(int64_t piece) {
    const int64_t node = piece / pieces_;
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t other = node * pieces_; other < (node + 1) * pieces_; ++other)
      largest = larger(largest, largest_[other]);
    const float limit = largest * threshold_;
    for (int64_t row = first_row(piece); row < end_row(piece); ++row) {
      slope()[row] = pass_.o[row] < limit ? 1.0f : 0.0f;
      map_[row] = pass_.o[row] * slope()[row];
    }
  }

  float* slope() { return map_.data() + shape_.rows(); }

  DropoutPass pass_;
  Shape shape_;
  const std::vector<char>& salient_;
  float threshold_;
  int64_t piece_rows_, pieces_;  // rows of a piece, pieces of a node
  Buffer<float> largest_;  // mean of each piece
  Buffer<float> map_;      // (rows), and its derivative by the means
};

Shape check(const char* operation, const Tensor& g) {
  const Argument argument{operation, "g", g};
  require(g.dim() == 4, argument, "be (B, K, N, C)");
  require_values(argument);
  require(g.is_contiguous(), argument, "be contiguous");
  require(g.size(3) > 0 || g.numel() == 0, argument, "have channels");
  return {g.size(0), g.size(1), g.size(2), g.size(3)};
}

// Of each node, whether its draw is below the rate. Draws (B,) or (B, K): float32, or bool, which are the answers.
std::vector<char> salient_nodes(const char* operation, const Tensor& r, const Shape& shape, double rate) {
  const Argument argument{operation, "r", r};
  require(r.is_cpu(), argument, "be on the CPU");
  const bool each = r.dim() == 2;
  require((each || r.dim() == 1) && r.size(0) == shape.groups && (!each || r.size(1) == shape.images), argument,
          "be (B,) or (B, K), one for each group or node of g");
  const bool known = r.scalar_type() == ScalarType::Bool;
  require(known || r.scalar_type() == ScalarType::Float, argument, "be float32 or bool");
  std::vector<char> salient(shape.nodes());
  const void* draws = r.const_data_ptr();
  for (int64_t node = 0; node < shape.nodes(); ++node) {
    const int64_t at = node / shape.images * r.stride(0) + (each ? node % shape.images * r.stride(1) : 0);
    salient[node] =
        known ? static_cast<const bool*>(draws)[at] : static_cast<const float*>(draws)[at] < static_cast<float>(rate);
  }
  return salient;
}

bool past_caches(const std::optional<bool>& wanted, const Tensor& g, int64_t tensors) {
  return wanted.value_or(exceeds_caches(tensors * g.numel() * (g.scalar_type() == ScalarType::Float ? 4 : 2)));
}

std::vector<int64_t> sizes_of(const Shape& shape) {
  return {shape.groups, shape.images, shape.positions, shape.channels};
}

std::tuple<Tensor, Tensor> graph_dropout(const Tensor& g, const Tensor& r, double rate, double threshold, bool fill,
                                         std::optional<bool> past) {
  constexpr auto name = "graph_dropout";
  const Shape shape = check(name, g);
  const std::vector<char> salient = salient_nodes(name, r, shape, rate);
  const Tensor out = empty_tensor(g.scalar_type(), sizes_of(shape));
  const Tensor o = empty_tensor(ScalarType::Float, {shape.groups, shape.images, shape.positions});
  if (fill) {
    poison(out);
    poison(o);
  }
  const bool is_bfloat16 = g.scalar_type() == ScalarType::BFloat16;
  Dropout({is_bfloat16, past_caches(past, g, 2), shape.channels, g.const_data_ptr(), nullptr, out.mutable_data_ptr(),
           o.mutable_data_ptr<float>(), nullptr, nullptr},
          shape, salient, threshold)
      .forward();
  return {out, o};
}

Tensor graph_dropout_backward(const Tensor& grad, const Tensor& g, const Tensor& o, const Tensor& r, double rate,
                              double threshold, bool fill, std::optional<bool> past) {
  constexpr auto name = "graph_dropout_backward";
  const Shape shape = check(name, g);
  const std::vector<char> salient = salient_nodes(name, r, shape, rate);
  require_packed({name, "grad", grad}, {g.size(0), g.size(1), g.size(2), g.size(3)}, g.scalar_type());
  require_packed({name, "o", o}, {g.size(0), g.size(1), g.size(2)}, ScalarType::Float);
  const Tensor grad_g = empty_tensor(g.scalar_type(), sizes_of(shape));
  if (fill) poison(grad_g);
  const bool is_bfloat16 = g.scalar_type() == ScalarType::BFloat16;
  Dropout({is_bfloat16, past_caches(past, g, 3), shape.channels, g.const_data_ptr(), grad.const_data_ptr(),
           grad_g.mutable_data_ptr(), const_cast<float*>(o.const_data_ptr<float>()), nullptr, nullptr},
          shape, salient, threshold)
      .backward();
  return grad_g;
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("graph_dropout_on_cpu", TORCH_BOX(&gwsss_fast::graph_dropout));
  library.impl("graph_dropout_on_cpu_backward", TORCH_BOX(&gwsss_fast::graph_dropout_backward));
}
