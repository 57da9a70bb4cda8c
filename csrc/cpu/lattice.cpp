#include "lattice.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "code_table.h"
#include "parallel.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kLocated = 512;         // pixels located at a time
constexpr int64_t kMaxStrips = 16;        // more would share more corners
constexpr int64_t kLeastOfStrip = 2048;   // pixels
constexpr int64_t kBlockWidth = 16;       // pixels
constexpr int64_t kCuts = 16;             // parts of the vertices that threads take
constexpr int64_t kLeastSorted = 8192;    // vertices; fewer stay in the second cache anyway
constexpr double kLargestCoordinate = 1 << 20;  // float32 tells neighbours apart

// The last simplices met by a strip, and their corners' rows: neighbouring pixels often share one.
struct Recent {
  static constexpr size_t count = 512;
  struct Entry {
    uint64_t code;
    uint32_t order = ~0u;
    int32_t row[kMaxDimensions + 1];
  };
  std::array<Entry, count> entries;

  Entry& at(uint64_t code, uint32_t order) {
    return entries[((code + order) * 0x9E3779B97F4A7C15ull) >> 55];
  }
};

// Builds a lattice in phases, whose work is cut the same way whatever the number of threads.
class Builder {
 public:
  Builder(const Features& features, const Order& order)
      : features_(features), coding_(make_coding(features)), size_(features.dimensions + 1), table_(0) {
    lattice->size = size_;
    lattice->pixels = features.height * features.width;
    lattice->strip = order.strip;
    const int64_t entries = lattice->pixels * size_;
    lattice->corner = Buffer<int32_t>(entries + kAhead * size_);
    std::fill_n(lattice->corner.data() + entries, kAhead * size_, 0);
    lattice->strip_corner = Buffer<int32_t>(entries);
    lattice->weight = Buffer<float>(entries);
    codes_.resize(strips());
  }

  std::vector<Phase> phases() {
    std::vector<Phase> plan;
    plan.push_back({strips(), [this](int64_t s) { build_strip(s); }});
    plan.push_back({1, [this](int64_t) { merge_strips(); }});
    plan.push_back({kCuts, [this](int64_t i) { find_levels(cut(i), cut(i + 1)); }});
    plan.push_back({1, [this](int64_t) { sort_vertices(); }});
    plan.push_back({strips(), [this](int64_t s) { number_corners(s); }});
    plan.push_back({kCuts, [this](int64_t i) { find_neighbours(cut(i), cut(i + 1)); }});
    plan.push_back({kCuts, [this](int64_t i) { sum_rows(cut(i), cut(i + 1)); }});
    for (int j = 0; j < size_; ++j)
      plan.push_back({kCuts, [this, j](int64_t i) { blur_sums(j, i); }});
    plan.push_back({strips(), [this](int64_t s) { normalise(s); }});
    return plan;
  }

  std::shared_ptr<Lattice> lattice = std::make_shared<Lattice>();

 private:
  int64_t strips() const { return static_cast<int64_t>(lattice->strip.size()) - 1; }
  int64_t cut(int64_t i) const { return lattice->vertices * i / kCuts; }

  // Rows and weights of the pixels of a strip.
  void build_strip(int64_t number) {
    CodeTable table(1024);
    auto recent = std::make_unique<Recent>();
    std::array<uint64_t, kLocated> codes;
    std::array<uint32_t, kLocated> orders;
    const int64_t last = lattice->strip[number + 1];
    for (int64_t first = lattice->strip[number]; first < last; first += kLocated) {
      const int64_t end = std::min(first + kLocated, last);
      kernels().locate(features_, coding_, first, end, codes.data(), orders.data(),
                       lattice->weight.data() + first * size_);
      for (int64_t place = first; place < end; ++place) {
        const uint64_t code = codes[place - first];
        const uint32_t order = orders[place - first];
        Recent::Entry& entry = recent->at(code, order);
        if (entry.code != code || entry.order != order) {
          uint64_t corner[kMaxDimensions + 1];
          corner_codes(coding_, size_, code, order, corner);
          entry.code = code;
          entry.order = order;
          for (int k = 0; k < size_; ++k) entry.row[k] = table.insert(corner[k]);
        }
        for (int k = 0; k < size_; ++k) lattice->strip_corner[place * size_ + k] = entry.row[k];
      }
    }
    codes_[number] = table.codes();
  }

  // Numbers the vertices of all strips; number_[row] is that of a row.
  void merge_strips() {
    lattice->row.assign(1, 0);
    for (const auto& strip : codes_) lattice->row.push_back(lattice->row.back() + static_cast<int64_t>(strip.size()));
    lattice->strip_rows = lattice->row.back();
    number_ = Buffer<int32_t>(lattice->strip_rows);
    table_ = CodeTable(lattice->strip_rows);
    int64_t row = 0;
    constexpr size_t ahead = 16;
    for (const auto& strip : codes_)
      for (size_t i = 0; i < strip.size(); ++i) {
        if (i + ahead < strip.size()) table_.prefetch(strip[i + ahead]);
        number_[row++] = table_.insert(strip[i]);
      }
    if (lattice->pixels % 4 != 0) insert_zero();
    lattice->vertices = static_cast<int64_t>(table_.codes().size());
    place_ = Buffer<int32_t>(lattice->vertices);
    lattice->neighbour = Buffer<int32_t>(2 * size_ * lattice->vertices);
    for (Buffer<float>* sums : {&sum_, &blurred_}) {
      *sums = Buffer<float>(lattice->vertices + 1);
      (*sums)[lattice->vertices] = 0;
    }
  }

  // The published code works on blocks of four features and fills the last block with zeros. The corners around zero
  // then exist, carry no pixel, and yet pass the blur on; without them a pixel nearby can differ by some 0.002.
  void insert_zero() {
    const uint8_t black[3] = {};
    const int32_t first = 0;
    uint64_t code = 0, corner[kMaxDimensions + 1];
    uint32_t order = 0;
    float weight[kMaxDimensions + 1];
    const Features zero{features_.dimensions, 1, 1, black, 1, 1, &first};
    kernels().locate(zero, coding_, 0, 1, &code, &order, weight);
    corner_codes(coding_, size_, code, order, corner);
    for (int k = 0; k < size_; ++k) table_.insert(corner[k]);
  }

  // The level of each vertex: its last coordinate (y or blue), which is minus the sum of the others.
  void find_levels(int64_t begin, int64_t end) {
    const int dimensions = size_ - 1;
    uint64_t origin = 0;
    for (int j = 0; j < dimensions; ++j) origin -= static_cast<uint64_t>(coding_.lowest[j]) * coding_.stride[j];
    for (int64_t v = begin; v < end; ++v) {
      uint64_t left = table_.codes()[v] + origin;
      int64_t sum = 0;
      for (int j = dimensions - 1; j >= 0; --j) {
        const uint64_t digit = left / coding_.stride[j];
        left -= digit * coding_.stride[j];
        sum += static_cast<int64_t>(digit) + coding_.lowest[j];
      }
      place_[v] = static_cast<int32_t>(-sum);
    }
  }

  // place_[number] becomes the vertex, sorted by level; lists the rows of each vertex, strip by strip.
  void sort_vertices() {
    const int64_t count = lattice->vertices;
    in_level_ = Buffer<int32_t>(count);
    if (count < kLeastSorted) {
      for (int64_t v = 0; v < count; ++v) place_[v] = in_level_[v] = static_cast<int32_t>(v);
      lattice->level = {0, static_cast<int32_t>(count)};
    } else {
      const auto [least, most] = std::minmax_element(place_.data(), place_.data() + count);
      const int32_t lowest = *least;
      const int64_t levels = static_cast<int64_t>(*most) - lowest + 1;
      lattice->level.assign(levels + 1, 0);
      for (int64_t v = 0; v < count; ++v) ++lattice->level[place_[v] - lowest + 1];
      for (int64_t l = 0; l < levels; ++l) lattice->level[l + 1] += lattice->level[l];
      std::vector<int32_t> next(lattice->level.begin(), lattice->level.end() - 1);
      for (int64_t v = 0; v < count; ++v) {
        const int32_t level = place_[v] - lowest;
        place_[v] = next[level]++;
        in_level_[v] = place_[v] - lattice->level[level];
      }
    }
    for (size_t l = 0; l + 1 < lattice->level.size(); ++l)
      lattice->largest_level = std::max(lattice->largest_level, lattice->level[l + 1] - lattice->level[l]);
    lattice->source_start = Buffer<int32_t>(count + 1);
    lattice->source = Buffer<int32_t>(lattice->strip_rows);
    std::vector<int32_t> next(count + 1, 0);
    for (int64_t i = 0; i < lattice->strip_rows; ++i) {
      number_[i] = place_[number_[i]];
      ++next[number_[i] + 1];
    }
    for (int64_t v = 0; v < count; ++v) next[v + 1] += next[v];
    std::copy(next.begin(), next.end(), lattice->source_start.data());
    for (int64_t i = 0; i < lattice->strip_rows; ++i) lattice->source[next[number_[i]]++] = static_cast<int32_t>(i);
    row_sum_ = Buffer<float>(lattice->strip_rows);
    std::fill_n(lattice->neighbour.data(), lattice->neighbour.size(), lattice->largest_level);
  }

  // From rows counted strip by strip to rows of all strips, and to vertices; begins the row sums of the filter.
  void number_corners(int64_t s) {
    std::fill(row_sum_.data() + lattice->row[s], row_sum_.data() + lattice->row[s + 1], 0.0f);
    for (int64_t i = lattice->strip[s] * size_; i < lattice->strip[s + 1] * size_; ++i) {
      const int64_t row = lattice->strip_corner[i] + lattice->row[s];
      lattice->strip_corner[i] = static_cast<int32_t>(row);
      lattice->corner[i] = number_[row];
      row_sum_[row] += lattice->weight[i];
    }
  }

  void find_neighbours(int64_t begin, int64_t end) {
    constexpr int64_t ahead = 4;
    const auto& codes = table_.codes();
    int32_t* neighbour = lattice->neighbour.data();
    for (int64_t v = begin; v < end; ++v) {
      if (v + ahead < end)
        for (int j = 0; j < size_; ++j) table_.prefetch(codes[v + ahead] + coding_.step[j]);
      for (int j = 0; j < size_; ++j) {
        const int32_t found = table_.find(codes[v] + coding_.step[j]);
        if (found < 0) continue;
        neighbour[2 * (j * lattice->vertices + place_[v]) + 1] = in_level_[found];
        neighbour[2 * (j * lattice->vertices + place_[found])] = in_level_[v];  // nobody else writes there
      }
    }
  }

  void sum_rows(int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      float sum = 0;
      for (int32_t i = lattice->source_start[v]; i < lattice->source_start[v + 1]; ++i)
        sum += row_sum_[lattice->source[i]];
      sum_[v] = sum;
    }
  }

  void blur_sums(int direction, int64_t cut) {
    const Buffer<float>& from = direction % 2 == 0 ? sum_ : blurred_;
    Buffer<float>& to = direction % 2 == 0 ? blurred_ : sum_;
    const auto& level = lattice->level;
    const int64_t levels = static_cast<int64_t>(level.size()) - 1;
    for (int64_t l = levels * cut / kCuts; l < levels * (cut + 1) / kCuts; ++l) {
      const int64_t below = std::clamp<int64_t>(l - lattice->climb(direction), 0, levels - 1);
      const int64_t above = std::clamp<int64_t>(l + lattice->climb(direction), 0, levels - 1);
      for (int64_t v = level[l]; v < level[l + 1]; ++v) {
        const int32_t* beside = lattice->neighbour.data() + 2 * (direction * lattice->vertices + v);
        // The element after the last is zero; which it is cannot be predicted.
        const int64_t before = beside[0] < lattice->largest_level ? level[below] + beside[0] : lattice->vertices;
        const int64_t after = beside[1] < lattice->largest_level ? level[above] + beside[1] : lattice->vertices;
        to[v] = from[v] + 0.5f * (from[before] + from[after]);
      }
    }
  }

  // Multiplies the weights by the inverse root of the row sums of the filter.
  void normalise(int64_t s) {
    const Buffer<float>& vertex = size_ % 2 == 0 ? sum_ : blurred_;
    const float gain = 1.0f / (1.0f + std::ldexp(1.0f, 1 - size_));  // of the blur, Adams et al.
    for (int64_t place = lattice->strip[s]; place < lattice->strip[s + 1]; ++place) {
      float* weight = lattice->weight.data() + place * size_;
      float sum = 0;
      for (int k = 0; k < size_; ++k) sum += weight[k] * vertex[lattice->corner[place * size_ + k]];
      const float norm = 1.0f / std::sqrt(sum * gain + 1e-20f);
      for (int k = 0; k < size_; ++k) weight[k] *= norm;
    }
  }

  Features features_;
  Coding coding_;
  int size_;
  CodeTable table_;
  std::vector<std::vector<uint64_t>> codes_;
  Buffer<int32_t> number_;
  Buffer<int32_t> place_;
  Buffer<int32_t> in_level_;
  Buffer<float> row_sum_;
  Buffer<float> sum_;
  Buffer<float> blurred_;
};

}  // namespace

// Strips are nearly square cells of a grid: the more compact, the fewer corners they share with others.
Order::Order(int64_t height, int64_t width) : pixel(height * width) {
  int64_t rows = 1, columns = 1;
  while (2 * rows * columns <= kMaxStrips && height * width / (2 * rows * columns) >= kLeastOfStrip)
    (height / rows >= width / columns ? rows : columns) *= 2;
  int64_t place = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      strip.push_back(place);
      const int64_t right = width * (c + 1) / columns;
      for (int64_t x = width * c / columns; x < right; x += kBlockWidth)
        for (int64_t y = height * r / rows; y < height * (r + 1) / rows; ++y)
          for (int64_t i = x; i < std::min(x + kBlockWidth, right); ++i)
            pixel[place++] = static_cast<int32_t>(y * width + i);
    }
  strip.push_back(place);
}

Coding make_coding(const Features& features) {
  const int dimensions = features.dimensions, size = dimensions + 1;
  const float unit_width = static_cast<float>(std::sqrt(2.0 / 3.0) * size);
  Coding coding{};
  double widest[kMaxDimensions], above = 0;
  for (int i = 0; i < dimensions; ++i) {
    coding.scale[i] = static_cast<float>(1.0 / std::sqrt((i + 2.0) * (i + 1.0)) * unit_width);
    const double range = i == 0 ? features.width - 1 : i == 1 ? features.height - 1 : 255;
    widest[i] = range / (i < 2 ? features.sxy : features.srgb) * coding.scale[i];
    above += widest[i];
  }
  uint64_t stride = 1, total = 0;
  double points = 1;
  for (int j = 0; j < dimensions; ++j) {  // coordinate j lies between -j * widest[j - 1] and the sum of the later ones
    const double below = j > 0 ? j * widest[j - 1] : 0, extent = above + below + 8.0 * size;
    points *= extent;
    if (!(extent < kLargestCoordinate) || !(points < 0x1p62))
      throw std::invalid_argument(
          std::string("dense_crf: ") + (dimensions == 2 ? "sxy_gaussian" : "sxy_bilateral or srgb") +
          " is too small for this image; a lattice so fine cannot be indexed");
    coding.stride[j] = stride;
    coding.lowest[j] = -static_cast<int64_t>(below) - 4 * size;
    total += stride;
    stride *= static_cast<uint64_t>(std::ceil(extent));
    above -= widest[j];
  }
  for (int j = 0; j <= dimensions; ++j)  // adds `dimensions` to coordinate j and takes 1 from the others
    coding.step[j] = (j < dimensions ? size * coding.stride[j] : 0) - total;
  return coding;
}

void corner_codes(const Coding& coding, int size, uint64_t code, uint32_t order, uint64_t* corner) {
  uint64_t drop[8] = {};  // by rank: what the coordinate of that rank loses from some corner on
  uint64_t total = 0;
  for (int j = 0; j + 1 < size; ++j) {
    drop[order >> (3 * j) & 7] = size * coding.stride[j];
    total += coding.stride[j];
  }
  for (int k = 0; k < size; ++k) {
    corner[k] = code;
    code += total - drop[size - 1 - k];
  }
}

std::shared_ptr<const Lattice> build_lattice(const Features& features, const Order& order) {
  Builder builder(features, order);
  run_phases(builder.phases());
  return builder.lattice;
}

size_t Lattice::bytes() const {
  return corner.bytes() + strip_corner.bytes() + weight.bytes() + source_start.bytes() + source.bytes() +
      neighbour.bytes();
}

}  // namespace gwsss_fast
