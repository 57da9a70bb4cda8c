// Mean field of the dense CRF: passes over pixels and lattices by turns.

#include "gwsss_fast/dense_crf.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <list>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "dense_crf.h"
#include "kernels.h"
#include "lattice.h"
#include "parallel.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kLeastRows = 4096;           // vertices of a lattice that a thread takes at least
constexpr size_t kLeastStreamed = 4 << 20;     // bytes of vertices; fewer are still in the cache when they are read
constexpr size_t kMostKept = size_t{1} << 28;  // bytes of lattices kept for a next call
constexpr size_t kMostPositions = 2;           // lattices of positions kept
constexpr size_t kMostColours = 1;             // lattices of colours kept

// Lattices of the last calls. One of positions serves every image of its size; one of colours the same image again,
// as when two presets share its widths.
class Cache {
 public:
  std::shared_ptr<const Lattice> get(const Features& features, const Order& order) {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      for (auto it = entries_.begin(); it != entries_.end(); ++it)
        if (it->fits(features)) {
          entries_.splice(entries_.begin(), entries_, it);
          return entries_.front().lattice;
        }
    }
    make_room(features);  // before the new one is built: it takes the memory of the one that it follows
    auto lattice = build_lattice(features, order);
    Entry entry{features, {}, lattice};
    if (features.dimensions > 2)
      entry.image.assign(features.image, features.image + 3 * features.height * features.width);
    const std::lock_guard<std::mutex> guard(mutex_);
    entries_.push_front(std::move(entry));
    size_t bytes = 0;
    for (auto it = entries_.begin(); it != entries_.end();) {
      bytes += it->lattice->bytes();
      it = it != entries_.begin() && bytes > kMostKept ? entries_.erase(it) : std::next(it);
    }
    return lattice;
  }

  void clear() {
    const std::lock_guard<std::mutex> guard(mutex_);
    entries_.clear();
  }

 private:
  struct Entry {
    Features features;
    std::vector<uint8_t> image;
    std::shared_ptr<const Lattice> lattice;

    bool of_colours() const { return features.dimensions > 2; }

    bool fits(const Features& other) const {
      if (features.dimensions != other.dimensions || features.height != other.height ||
          features.width != other.width || features.sxy != other.sxy)
        return false;
      return features.dimensions == 2 ||
          (features.srgb == other.srgb && std::memcmp(image.data(), other.image, image.size()) == 0);
    }
  };

  // Forgets the oldest of a kind where one more would be too many.
  void make_room(const Features& features) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const bool colours = features.dimensions > 2;
    size_t kept = 0;
    for (auto it = entries_.begin(); it != entries_.end();)
      it = it->of_colours() == colours && ++kept >= (colours ? kMostColours : kMostPositions) ? entries_.erase(it)
                                                                                              : std::next(it);
  }

  std::mutex mutex_;
  std::list<Entry> entries_;
};

Cache& cache() {
  static Cache kept;
  return kept;
}

// A mean field: passes over pixels and filters by turns, planned first and then run in one parallel region.
class MeanField {
 public:
  MeanField(const uint8_t* image, int64_t labels, int64_t height, int64_t width, const DenseCrfOptions& options)
      : order_(height, width) {
    pass_.labels = labels;
    pass_.pitch = row_pitch(labels);
    pass_.pixels = height * width;
    pass_.order = order_.pixel.data();
    add(options.w_gaussian, {2, options.sxy_gaussian, 1, nullptr, height, width, pass_.order});
    add(options.w_bilateral, {5, options.sxy_bilateral, options.srgb, image, height, width, pass_.order});
    pass_.kernels = static_cast<int>(kernels_.size());
    unary_ = Buffer<float>(pass_.pixels * pass_.pitch);
    pass_.unary = unary_.data();
  }

  // Forward. marginals, each (pixels, pitch): kept of the start and of every update, if asked for.
  void forward(const float* prob, float* output, int64_t iterations, std::vector<Buffer<float>>* marginals) {
    std::atomic<bool> nan{false};
    std::vector<Phase> plan;
    for (int64_t step = 0; step <= iterations; ++step) {
      if (marginals != nullptr) marginals->emplace_back(pass_.pixels * pass_.pitch);
      PixelPass pass = make_pass(step > 0, step < iterations);
      if (marginals != nullptr) pass.row = marginals->back().data();
      pass.input = step == 0 ? prob : nullptr;
      pass.output = step == iterations ? output : nullptr;
      plan.push_back(over_strips(pass, [&nan](const PixelPass& p, int64_t begin, int64_t end, float* scratch) {
        if (gwsss_fast::kernels().forward(p, begin, end, scratch)) nan = true;
        if (nan) throw std::invalid_argument("dense_crf: prob holds NaN");
      }));
      if (step < iterations) plan.push_back(filter(pass.row, false));
    }
    run_phases(plan);
  }

  // Backward through all updates: softmax by softmax, with the transposed filter between them.
  void backward(const float* grad, float* grad_unary, std::vector<Buffer<float>>& marginals) {
    std::vector<Phase> plan;
    for (int64_t step = static_cast<int64_t>(marginals.size()) - 1; step >= 0; --step) {
      const bool first = step + 1 == static_cast<int64_t>(marginals.size());
      PixelPass pass = make_pass(!first, step > 0);
      pass.marginal = marginals[step].data();
      pass.input = first ? grad : nullptr;
      pass.output = step == 0 ? grad_unary : nullptr;
      plan.push_back(over_strips(pass, gwsss_fast::kernels().backward));
      if (step > 0) plan.push_back(filter(pass.row, true));
    }
    run_phases(plan);
  }

 private:
  struct Kernel {
    float weight;
    std::shared_ptr<const Lattice> lattice;
    Buffer<float> strip_row;
    Buffer<float> vertex;
  };

  void add(float weight, const Features& features) {
    if (weight == 0) return;
    auto lattice = cache().get(features, order_);
    kernels_.push_back({weight, lattice, Buffer<float>(lattice->strip_rows * pass_.pitch),
                        Buffer<float>(lattice->vertices * pass_.pitch)});
    if (lattice->direct && row_.size() == 0) row_ = Buffer<float>(pass_.pixels * pass_.pitch);
  }

  // read: messages; write: rows for the next filter.
  PixelPass make_pass(bool read, bool write) {
    PixelPass pass = pass_;
    for (size_t k = 0; k < kernels_.size(); ++k) {
      Kernel& kernel = kernels_[k];
      const Lattice& lattice = *kernel.lattice;
      pass.edges[k] = {lattice.size,
                       lattice.vertices,
                       lattice.strip_rows,
                       lattice.corner.data(),
                       lattice.strip_corner.data(),
                       lattice.weight.data(),
                       read ? kernel.vertex.data() : nullptr,
                       write ? kernel.strip_row.data() : nullptr};
      if (write && lattice.direct) pass.row = row_.data();
    }
    return pass;
  }

  // work(pass, begin, end, scratch) on the pixels of every strip.
  template <class Work>
  Phase over_strips(const PixelPass& pass, Work work) {
    return {static_cast<int64_t>(order_.strip.size()) - 1, [this, pass, work](int64_t s) {
              Buffer<float> scratch(2 * kTile * pass.pitch);
              for (int k = 0; k < pass.kernels; ++k)
                if (pass.edges[k].strip_row != nullptr) clear_strip(kernels_[k], s);
              work(pass, order_.strip[s], order_.strip[s + 1], scratch.data());
            }};
  }

  void clear_strip(Kernel& kernel, int64_t s) const {
    const Lattice& lattice = *kernel.lattice;
    for (int64_t plane = 0; plane < planes(pass_.pitch); ++plane) {
      const int64_t width = plane_width(pass_.pitch, plane);
      float* rows = kernel.strip_row.data() + plane * kPlane * lattice.strip_rows;
      std::fill(rows + lattice.row[s] * width, rows + lattice.row[s + 1] * width, 0.0f);
    }
  }

  // Vertices = weight * blur of the sums over strips, or over the pixels' rows; `transposed` takes the directions in
  // reverse order.
  Phase filter(const float* row, bool transposed) {
    struct Task {
      Sweep sweep;
      int64_t begin;
      int64_t end;
    };
    std::vector<Task> tasks;
    for (Kernel& kernel : kernels_)
      for (int64_t plane = 0; plane < planes(pass_.pitch); ++plane) {
        const Sweep sweep = make_sweep(kernel, row, plane, transposed);
        // Halos are done twice where two ranges meet; results are the same wherever the cuts are.
        const int64_t parts = std::clamp<int64_t>(kernel.lattice->vertices / kLeastRows, 1, threads());
        int64_t begin = 0;
        for (int64_t part = 1; part <= parts; ++part) {
          const auto cut = static_cast<int32_t>(kernel.lattice->vertices * part / parts);
          const int64_t found = std::lower_bound(sweep.level, sweep.level + sweep.levels, cut) - sweep.level;
          const int64_t end = part == parts ? sweep.levels : found;
          if (end > begin) tasks.push_back({sweep, begin, end});
          begin = end;
        }
      }
    const auto count = static_cast<int64_t>(tasks.size());
    return {count, [tasks = std::move(tasks)](int64_t i) {
              const Task& task = tasks[i];
              Buffer<float> ring(2 * task.sweep.slots * (task.sweep.slot_rows + 1) * task.sweep.width);
              gwsss_fast::kernels().sweep(task.sweep, task.begin, task.end, ring.data());
            }};
  }

  Sweep make_sweep(Kernel& kernel, const float* row, int64_t plane, bool transposed) const {
    const Lattice& lattice = *kernel.lattice;
    Sweep sweep{};
    sweep.size = lattice.size;
    sweep.slots = 1;  // from the level that is gathered down to the lowest that the last blur reads
    for (int i = 0; i < lattice.size; ++i) {
      sweep.order[i] = transposed ? lattice.size - 1 - i : i;
      sweep.climb[i] = lattice.climb(sweep.order[i]);
      sweep.slots += std::max(sweep.reach(i), i > 0 ? sweep.reach(i - 1) : 0);
    }
    sweep.slots += sweep.reach(lattice.size - 1);
    sweep.levels = static_cast<int64_t>(lattice.level.size()) - 1;
    sweep.level = lattice.level.data();
    sweep.neighbour = lattice.neighbour.data();
    sweep.source_start = lattice.source_start.data();
    sweep.source = lattice.source.data();
    sweep.source_weight = lattice.direct ? lattice.source_weight.data() : nullptr;
    sweep.row = lattice.direct ? row + plane * kPlane : kernel.strip_row.data() + plane * kPlane * lattice.strip_rows;
    sweep.row_pitch = lattice.direct ? pass_.pitch : plane_width(pass_.pitch, plane);
    sweep.scale = kernel.weight / (1.0f + std::ldexp(1.0f, 1 - lattice.size));  // the blur's gain
    sweep.vertex = kernel.vertex.data() + plane * kPlane * lattice.vertices;
    sweep.width = plane_width(pass_.pitch, plane);
    sweep.streamed = kernel.vertex.bytes() >= kLeastStreamed;
    sweep.slot_rows = lattice.largest_level;
    return sweep;
  }

  Order order_;
  PixelPass pass_{};
  std::vector<Kernel> kernels_;
  Buffer<float> unary_;
  Buffer<float> row_;  // what direct lattices sum
};

}  // namespace

void check_dense_crf(int64_t labels, int64_t height, int64_t width, const DenseCrfOptions& options) {
  const auto fail = [](const std::string& what) { throw std::invalid_argument("dense_crf: " + what); };
  if (labels < 1) fail("prob has no labels");
  if (height < 0 || width < 0) fail("prob has a negative size");
  const int64_t most = std::numeric_limits<int32_t>::max() / (kMaxDimensions + 1);
  if (height > 0 && width > most / height) fail("prob has more than " + std::to_string(most) + " pixels");
  if (labels > 65535) fail("prob has more than 65535 labels");
  if (options.iterations < 0) fail("iterations must be 0 or more");
  const std::pair<const char*, float> widths[] = {
      {"sxy_gaussian", options.sxy_gaussian}, {"sxy_bilateral", options.sxy_bilateral}, {"srgb", options.srgb}};
  for (const auto& [name, value] : widths)
    if (!(std::isfinite(value) && value > 0)) fail(std::string(name) + " must be a number above zero");
  if (!std::isfinite(options.w_gaussian)) fail("w_gaussian must be a finite number");
  if (!std::isfinite(options.w_bilateral)) fail("w_bilateral must be a finite number");
}

void dense_crf(const float* prob, const uint8_t* image, int64_t labels, int64_t height, int64_t width,
               const DenseCrfOptions& options, float* marginals) {
  check_dense_crf(labels, height, width, options);
  if (height == 0 || width == 0) return;
  prefer_huge_pages(marginals, labels * height * width * sizeof(float));
  MeanField(image, labels, height, width, options).forward(prob, marginals, options.iterations, nullptr);
}

void dense_crf_backward(const float* grad, const float* prob, const uint8_t* image, int64_t labels, int64_t height,
                        int64_t width, const DenseCrfOptions& options, float* grad_prob) {
  check_dense_crf(labels, height, width, options);
  if (height == 0 || width == 0) return;
  MeanField field(image, labels, height, width, options);
  std::vector<Buffer<float>> marginals;
  field.forward(prob, nullptr, options.iterations, &marginals);
  field.backward(grad, grad_prob, marginals);
  parallel_for(labels * height * width, 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {  // the logarithm, and the clip
      const bool kept = prob[i] >= kSmallest && prob[i] <= 1.0f;
      grad_prob[i] = kept ? grad_prob[i] / prob[i] : 0.0f;
    }
  });
}

void dense_crf_forget() {
  cache().clear();
  forget_memory();
}

}  // namespace gwsss_fast
