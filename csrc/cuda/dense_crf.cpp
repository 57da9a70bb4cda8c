// The dense CRF on a GPU: the steps of crf_steps.h in order. The same functions run on tensors of the CPU, as operators
// of their own for the tests.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../cpu/dense_crf.h"
#include "../cpu/lattice.h"
#include "../crf_arguments.h"
#include "arrays.h"
#include "crf_steps.h"

namespace gwsss_fast {
namespace {

using torch::stable::Tensor;

// What the GPU has written to `state`: counts of a lattice, and whether there was a NaN.
int64_t read_counts(const Place& place, const Array<int64_t>& state) {
  const auto [counts, nan] = place.read(state);
  if (nan != 0) throw std::invalid_argument("dense_crf: prob holds NaN");
  return counts;
}

// Codes and weights (count, D + 1) of the corners of the pixels' simplices.
void locate(const Place& place, const Features& features, const Coding& coding, int64_t count, int64_t* code,
            float* weight) {
  const int64_t pixels = features.height * features.width;
  const auto run = [&](auto dimensions) {
    const Locate<dimensions> step{coding, features.sxy, features.srgb, features.image, features.width,
                                  pixels, code,         weight};
    place.run(step, count);
  };
  if (features.dimensions == 2)
    run(std::integral_constant<int, 2>());
  else
    run(std::integral_constant<int, 5>());
}

// A lattice over the pixels of an image, see csrc/cpu/lattice.h. Its vertices are sorted by code, and so are the
// entries that are splatted onto them: a vertex is the sum of neighbouring entries, in one order.
class SortedLattice {
 public:
  SortedLattice(const Place& place, const Features& features, const Array<int64_t>& state)
      : place_(place), size_(features.dimensions + 1), pixels_(features.height * features.width) {
    const Coding coding = make_coding(features);
    const int64_t located = pixels_ + (pixels_ % 4 != 0), entries = located * size_;
    STD_TORCH_CHECK(entries <= INT32_MAX, "dense_crf: prob has too many pixels");
    auto code = place.make<int64_t>(entries);
    weight = place.make<float>(entries);
    locate(place, features, coding, located, code.data, weight.data);
    auto [sorted, source] = Place::sort(code);
    place.run(Mark{sorted.data, code.data}, entries);
    const auto running = Place::running_sum(code);
    place.run(Count{running.data, entries, state.data}, 1);
    const int64_t counts = read_counts(place, state);
    vertices_ = counts >> 32;
    parts_ = counts & 0xffffffff;

    auto vertex_code = place.make<int64_t>(vertices_);
    vertex_part_ = place.make<int32_t>(vertices_ + 1);
    part_entry_ = place.make<int32_t>(parts_ + 1);
    corner = place.make<int32_t>(entries);
    entry_pixel_ = place.make<int32_t>(entries);
    entry_weight_ = place.make<float>(entries);
    neighbour_ = place.make<int32_t>(2 * size_ * vertices_);
    place.run(Number{size_, entries, pixels_, sorted.data, running.data, source.data, weight.data, vertex_code.data,
                     vertex_part_.data, part_entry_.data, corner.data, entry_pixel_.data, entry_weight_.data},
              entries);
    place.run(Neighbours{coding, vertices_, vertex_code.data, neighbour_.data}, size_ * vertices_);
    normalise();
  }

  int size() const { return size_; }
  int64_t vertices() const { return vertices_; }

  // weight * filter of the rows of pixels (pixels, units), which begin as ones if null: a value for every vertex.
  // transposed: the directions in reverse order.
  Array<Four> filter(const Four* value, int64_t units, float factor, bool transposed) const {
    const float scale = factor / (1.0f + std::ldexp(1.0f, 1 - size_));  // the blur's gain
    auto from = place_.make<Four>(vertices_ * units), to = place_.make<Four>(vertices_ * units);
    {
      const auto part = place_.make<Four>(parts_ * units);
      place_.run(SumParts{units, part_entry_.data, entry_pixel_.data, entry_weight_.data, value, part.data},
                 parts_ * units);
      place_.run(SumVertices{units, scale, vertex_part_.data, part.data, from.data}, vertices_ * units);
    }
    for (int i = 0; i < size_; ++i) {
      const int direction = transposed ? size_ - 1 - i : i;
      place_.run(Blur{units, neighbour_.data + 2 * direction * vertices_, from.data, to.data}, vertices_ * units);
      std::swap(from, to);
    }
    return from;
  }

  Array<int32_t> corner;  // (pixels, size) vertices of each pixel's simplex
  Array<float> weight;    // (pixels, size) barycentric coordinates * symmetric normalisation

 private:
  void normalise() {
    const auto norm = place_.make<float>(pixels_);
    const auto sums = filter(nullptr, 1, 1, false);
    place_.run(Normalise{size_, corner.data, sums.data, weight.data, norm.data}, pixels_);
    place_.run(NormaliseEntries{entry_pixel_.data, norm.data, entry_weight_.data}, entry_weight_.size);
  }

  const Place& place_;
  int size_;
  int64_t pixels_;
  int64_t vertices_ = 0;
  int64_t parts_ = 0;
  Array<int32_t> vertex_part_;   // (vertices + 1) first part of each
  Array<int32_t> part_entry_;    // (parts + 1) first entry of each, at most kPart
  Array<int32_t> entry_pixel_;   // (entries) sorted by vertex
  Array<float> entry_weight_;    // (entries)
  Array<int32_t> neighbour_;     // (size, vertices, 2)
};

// The updates of one image.
class Field {
 public:
  Field(const Tensor& prob, const Tensor& image, const DenseCrfOptions& options)
      : place_(prob), labels_(prob.size(0)), pixels_(prob.size(1) * prob.size(2)), units_((labels_ + 3) / 4),
        prob_(prob.const_data_ptr<float>()), unary_(place_.make<Four>(pixels_ * units_)),
        state_(place_.make<int64_t>(2)) {
    torch::stable::zero_(state_.tensor);
    place_.run(ReadUnary{labels_, units_, pixels_, kSmallest, prob_, unary_.data, state_.data}, pixels_ * units_);
    const auto* colours = image.const_data_ptr<uint8_t>();
    add(options.w_gaussian, {2, options.sxy_gaussian, 1, nullptr, prob.size(1), prob.size(2), nullptr});
    add(options.w_bilateral, {5, options.sxy_bilateral, options.srgb, colours, prob.size(1), prob.size(2), nullptr});
    if (kernels_.empty()) read_counts(place_, state_);
  }

  // Marginals after all updates; of the start and every update if `all` is given.
  Array<Four> forward(int64_t iterations, std::vector<Array<Four>>* all) const {
    auto marginal = place_.make<Four>(pixels_ * units_);
    for (int64_t step = 0; step <= iterations; ++step) {
      std::vector<Array<Four>> vertices;
      if (step > 0) vertices = filter(marginal, false);
      if (step > 0 && all != nullptr) marginal = place_.make<Four>(pixels_ * units_);
      place_.run(Update{messages(vertices), unary_.data, marginal.data}, pixels_);
      if (all != nullptr) all->push_back(marginal);
    }
    return marginal;
  }

  // Gradient of the unary from `grad` (labels, pixels), that of the marginals.
  Array<Four> backward(const float* grad, const std::vector<Array<Four>>& marginals) const {
    const auto gradient = place_.make<Four>(pixels_ * units_), total = place_.make<Four>(pixels_ * units_);
    place_.run(ReadMap{labels_, units_, pixels_, grad, gradient.data}, pixels_ * units_);
    for (auto marginal = marginals.rbegin(); marginal != marginals.rend(); ++marginal) {
      const bool given = marginal == marginals.rbegin();
      std::vector<Array<Four>> vertices;
      if (!given) vertices = filter(gradient, true);
      place_.run(UpdateBackward{messages(vertices), given, marginal->data, gradient.data, total.data}, pixels_);
    }
    return total;
  }

  // rows (pixels, units) as a map (labels, pixels); `of_unary`: gradients of the unary as those of prob.
  void write(const Array<Four>& rows, bool of_unary, const Tensor& map) const {
    const float* prob = of_unary ? prob_ : nullptr;
    place_.run(WriteMap{labels_, units_, pixels_, kSmallest, rows.data, prob, map.mutable_data_ptr<float>()},
               pixels_ * units_);
  }

 private:
  struct Kernel {
    float weight;
    SortedLattice lattice;
  };

  void add(float weight, const Features& features) {
    if (weight != 0) kernels_.push_back({weight, SortedLattice(place_, features, state_)});
  }

  std::vector<Array<Four>> filter(const Array<Four>& rows, bool transposed) const {
    std::vector<Array<Four>> vertices;
    for (const Kernel& kernel : kernels_)
      vertices.push_back(kernel.lattice.filter(rows.data, units_, kernel.weight, transposed));
    return vertices;
  }

  // Of the filtered vertices of all lattices, or none yet.
  Messages messages(const std::vector<Array<Four>>& vertices) const {
    Messages heard{};
    heard.units = units_;
    heard.lattices = static_cast<int>(vertices.size());
    for (size_t i = 0; i < vertices.size(); ++i) {
      heard.size[i] = kernels_[i].lattice.size();
      heard.corner[i] = kernels_[i].lattice.corner.data;
      heard.weight[i] = kernels_[i].lattice.weight.data;
      heard.vertex[i] = vertices[i].data;
    }
    return heard;
  }

  Place place_;
  int64_t labels_;
  int64_t pixels_;
  int64_t units_;
  const float* prob_;
  Array<Four> unary_;
  Array<int64_t> state_;
  std::vector<Kernel> kernels_;
};

Tensor forward(const Tensor& prob, const Tensor& image, double sxy_gaussian, double w_gaussian, double sxy_bilateral,
               double srgb, double w_bilateral, int64_t iterations) {
  check_crf(prob, image, prob.is_cpu() ? prob.device().type() : torch::headeronly::DeviceType::CUDA);
  const auto options = crf_options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations);
  check_dense_crf(prob.size(0), prob.size(1), prob.size(2), options);
  Tensor marginals = torch::stable::empty_like(prob);
  if (prob.numel() == 0) return marginals;
  const Field field(prob, image, options);
  field.write(field.forward(iterations, nullptr), false, marginals);
  return marginals;
}

Tensor backward(const Tensor& grad, const Tensor& prob, const Tensor& image, double sxy_gaussian, double w_gaussian,
                double sxy_bilateral, double srgb, double w_bilateral, int64_t iterations) {
  check_crf(prob, image, prob.is_cpu() ? prob.device().type() : torch::headeronly::DeviceType::CUDA);
  check_crf_gradient(grad, prob);
  const auto options = crf_options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations);
  check_dense_crf(prob.size(0), prob.size(1), prob.size(2), options);
  Tensor grad_prob = torch::stable::empty_like(prob);
  if (prob.numel() == 0) return grad_prob;
  const Field field(prob, image, options);
  std::vector<Array<Four>> marginals;
  field.forward(iterations, &marginals);
  field.write(field.backward(grad.const_data_ptr<float>(), marginals), true, grad_prob);
  return grad_prob;
}

// What both implementations make of an image (H, W, 3) on the CPU, before normalisation: codes and weights of the
// corners of each pixel's simplex, (pixels, corners), and how many vertices the lattice has. srgb = 0: of positions
// alone.
std::tuple<Tensor, Tensor, int64_t> simplices(const Tensor& image, double sxy, double srgb, bool steps) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(image.is_cpu() && image.scalar_type() == ScalarType::Byte && image.dim() == 3 &&
                      image.is_contiguous() && image.size(2) == 3 && image.numel() > 0,
                  "dense_crf_simplices: image must be uint8 (H, W, 3), contiguous and on the CPU");
  const Order order(image.size(0), image.size(1));
  const Features features{srgb > 0 ? 5 : 2, static_cast<float>(sxy), static_cast<float>(srgb),
                          image.const_data_ptr<uint8_t>(), image.size(0), image.size(1), order.pixel.data()};
  const Coding coding = make_coding(features);
  const int64_t size = features.dimensions + 1, pixels = image.size(0) * image.size(1);
  const Place place(image);
  const auto code = place.make<int64_t>(pixels * size);
  const auto weight = place.make<float>(pixels * size);
  if (steps) {
    const auto state = place.make<int64_t>(2);
    state.data[1] = 0;
    locate(place, features, coding, pixels, code.data, weight.data);
    return {code.tensor, weight.tensor, SortedLattice(place, features, state).vertices()};
  }
  for (int64_t i = 0; i < pixels; ++i) {
    uint64_t first, corner[kMaxDimensions + 1];
    uint32_t ranks;
    const int64_t at = order.pixel[i] * size;
    kernels().locate(features, coding, i, i + 1, &first, &ranks, weight.data + at);
    corner_codes(coding, static_cast<int>(size), first, ranks, corner);
    for (int64_t k = 0; k < size; ++k) code.data[at + k] = static_cast<int64_t>(corner[k]);
  }
  return {code.tensor, weight.tensor, build_lattice(features, order)->vertices};
}

}  // namespace
}  // namespace gwsss_fast

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, GWSSS_GPU_KEY, library) {
  library.impl("dense_crf", TORCH_BOX(&gwsss_fast::forward));
  library.impl("dense_crf_backward", TORCH_BOX(&gwsss_fast::backward));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("dense_crf_steps", TORCH_BOX(&gwsss_fast::forward));
  library.impl("dense_crf_steps_backward", TORCH_BOX(&gwsss_fast::backward));
  library.impl("dense_crf_simplices", TORCH_BOX(&gwsss_fast::simplices));
}
