#include "lattice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "code_table.h"
#include "parallel.h"
#include "strip.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kParts = 16;          // parts of the levels that threads take
constexpr int64_t kLeastSorted = 8192;  // rows; fewer stay in the second cache anyway
constexpr int64_t kMostDirect = 4;      // pixels a row

// Builds a lattice in phases, whose work is cut the same way whatever the number of threads. Vertices are numbered
// level by level, each level with a table of its own, which stays in the cache.
class Builder {
 public:
  Builder(const Features& features, const Order& order)
      : features_(features), coding_(make_coding(features)), size_(features.dimensions + 1) {
    lattice_->size = size_;
    lattice_->pixels = features.height * features.width;
    lattice_->strip = order.strip;
    const int64_t entries = lattice_->pixels * size_;
    lattice_->corner = Buffer<int32_t>(entries + kAhead * size_);
    std::fill_n(lattice_->corner.data() + entries, kAhead * size_, 0);
    lattice_->strip_corner = Buffer<int32_t>(entries);
    lattice_->weight = Buffer<float>(entries);
    strips_.resize(strips());
    if (lattice_->pixels % 4 != 0) find_zero();
  }

  std::shared_ptr<Lattice> build() {
    std::vector<Phase> plan;
    plan.push_back({strips(), [this](int64_t s) { make_rows(s); }});
    plan.push_back({1, [this](int64_t) { count_rows(); }});
    plan.push_back({strips(), [this](int64_t s) { sort_by_level(strips_[s], one_level_); }});
    plan.push_back({1, [this](int64_t) { deal_levels(); }});
    over_levels(plan, [this](int64_t level) { number_vertices(level); });
    plan.push_back({1, [this](int64_t) { place_levels(); }});
    over_levels(plan, [this](int64_t level) { list_sources(level); });
    plan.push_back({strips(), [this](int64_t s) { number_corners(s); }});
    over_levels(plan, [this](int64_t level) { find_neighbours(level); });
    over_levels(plan, [this](int64_t level) { sum_rows(level); });
    for (int j = 0; j < size_; ++j) over_levels(plan, [this, j](int64_t level) { blur_sums(j, level); });
    plan.push_back({strips(), [this](int64_t s) { normalise(s); }});
    run_phases(plan);
    if (lattice_->direct) lattice_->strip_corner = Buffer<int32_t>();
    return lattice_;
  }

 private:
  struct Level {
    CodeTable table;  // from codes to vertices counted in the level
    int64_t rows = 0;
    int64_t sources = 0;
  };

  int64_t strips() const { return static_cast<int64_t>(lattice_->strip.size()) - 1; }

  template <class Work>
  void over_levels(std::vector<Phase>& plan, Work work) {
    plan.push_back({kParts, [this, work](int64_t part) {
                      for (int64_t level = part_[part]; level < part_[part + 1]; ++level) work(level);
                    }});
  }

  void make_rows(int64_t s) {
    const int64_t begin = lattice_->strip[s], end = lattice_->strip[s + 1];
    strips_[s] = make_strip(features_, coding_, begin, end, lattice_->strip_corner.data() + begin * size_,
                            lattice_->weight.data() + begin * size_);
  }

  // The published code works on blocks of four features and fills the last block with zeros. The corners around zero
  // then exist, carry no pixel, and yet pass the blur on; without them a pixel nearby can differ by some 0.002.
  void find_zero() {
    const uint8_t black[3] = {};
    const int32_t first = 0;
    uint64_t code = 0, corner[kMaxDimensions + 1];
    uint32_t order = 0;
    float weight[kMaxDimensions + 1];
    const Features zero{features_.dimensions, 1, 1, black, 1, 1, &first};
    kernels().locate(zero, coding_, 0, 1, &code, &order, weight);
    corner_codes(coding_, size_, code, order, corner);
    zero_.assign(corner, corner + size_);
  }

  // Whether there are levels, and which. Few vertices are one level, in the order of their rows.
  void count_rows() {
    lattice_->row.assign(1, 0);
    for (const Strip& strip : strips_)
      lattice_->row.push_back(lattice_->row.back() + static_cast<int64_t>(strip.code.size()));
    const int64_t rows = lattice_->row.back(), entries = lattice_->pixels * size_;
    one_level_ = rows < kLeastSorted;
    lattice_->direct = entries <= kMostDirect * rows && !one_level_;
    lattice_->strip_rows = lattice_->direct ? 0 : rows;
    number_ = Buffer<int32_t>(rows);
    row_sum_ = Buffer<float>(rows);
    lattice_->source = Buffer<int32_t>(lattice_->direct ? entries : rows);
    if (lattice_->direct) {
      lattice_->source_weight = Buffer<float>(entries);
      next_source_ = Buffer<int32_t>(rows);
    }
  }

  // Which part each level belongs to: parts have nearly as many rows as each other.
  void deal_levels() {
    int32_t highest = std::numeric_limits<int32_t>::min();
    lowest_ = std::numeric_limits<int32_t>::max();
    const auto widen = [&](int32_t low, int32_t high) {
      lowest_ = std::min(lowest_, low);
      highest = std::max(highest, high);
    };
    for (const Strip& strip : strips_) widen(strip.lowest, strip.highest);
    for (const uint64_t code : zero_) widen(zero_level(code), zero_level(code));
    levels_.resize(int64_t{highest} - lowest_ + 1);
    part_.assign(1, 0);
    int64_t dealt = 0;
    for (int64_t level = 0; level < static_cast<int64_t>(levels_.size()); ++level) {
      while (dealt * kParts > lattice_->row.back() * static_cast<int64_t>(part_.size())) part_.push_back(level);
      for (const Strip& strip : strips_)
        levels_[level].rows += strip.end(level + lowest_) - strip.begin(level + lowest_);
      dealt += levels_[level].rows;
    }
    part_.resize(kParts + 1, static_cast<int64_t>(levels_.size()));
  }

  int32_t zero_level(uint64_t code) const { return one_level_ ? 0 : level_of(coding_, size_, code); }

  // Calls f(row counted in all strips, strip, its number among the strip's sorted rows) for the rows of a level, strip
  // by strip.
  template <class F>
  void for_rows(int64_t level, F&& f) const {
    for (int64_t s = 0; s < strips(); ++s) {
      const Strip& strip = strips_[s];
      for (int32_t i = strip.begin(level + lowest_); i < strip.end(level + lowest_); ++i)
        f(lattice_->row[s] + strip.row[i], strip, i);
    }
  }

  // Numbers a level's vertices in the order of their rows.
  void number_vertices(int64_t number) {
    Level& level = levels_[number];
    int64_t zeros = 0;
    for (const uint64_t code : zero_) zeros += zero_level(code) == number + lowest_;
    if (level.rows + zeros == 0) return;
    level.table = CodeTable(level.rows + zeros);
    for_rows(number, [&](int64_t row, const Strip& strip, int32_t i) {
      number_[row] = level.table.insert(strip.code[i]);
      level.sources += lattice_->direct ? strip.entries[i] : 1;
    });
    for (const uint64_t code : zero_)
      if (zero_level(code) == number + lowest_) level.table.insert(code);
  }

  // Where the vertices of each level begin.
  void place_levels() {
    int64_t vertices = 0, sources = 0;
    lattice_->level.assign(1, 0);
    lattice_->source_start.assign(1, 0);
    for (Level& level : levels_) {
      const auto count = static_cast<int64_t>(level.table.size());
      vertices += count;
      sources += level.sources;
      lattice_->source_start.push_back(static_cast<int32_t>(sources));
      lattice_->level.push_back(static_cast<int32_t>(vertices));
      lattice_->largest_level = std::max(lattice_->largest_level, static_cast<int32_t>(count));
    }
    lattice_->vertices = vertices;
    lattice_->neighbour = Buffer<int32_t>(2 * size_ * vertices);
    for (Buffer<float>* sums : {&sum_, &blurred_}) {
      *sums = Buffer<float>(vertices + 1);
      (*sums)[vertices] = 0;
    }
  }

  // The sources of each vertex of a level, strip by strip; number_[row] becomes the vertex. Pixels are filled in later.
  void list_sources(int64_t number) {
    const int32_t first = lattice_->level[number], end = lattice_->level[number + 1];
    if (first == end) return;
    const auto count = [&](const Strip& strip, int32_t i) { return lattice_->direct ? strip.entries[i] : 1; };
    std::vector<int32_t> next(end - first + 1, 0);
    for_rows(number, [&](int64_t row, const Strip& strip, int32_t i) { next[number_[row] + 1] += count(strip, i); });
    next[0] = lattice_->source_start[number];
    for (int32_t v = 0; v < end - first; ++v) next[v + 1] += next[v];
    int32_t* source = lattice_->source.data();
    std::fill(source + lattice_->source_start[number], source + lattice_->source_start[number + 1], 0);
    for (int32_t v = 0; v < end - first; ++v)
      if (next[v] < next[v + 1]) source[next[v]] = kFirst;
    for_rows(number, [&](int64_t row, const Strip& strip, int32_t i) {
      int32_t& own = next[number_[row]];
      if (lattice_->direct)
        next_source_[row] = own;
      else
        source[own] |= static_cast<int32_t>(row);
      own += count(strip, i);
      number_[row] += first;
    });
  }

  // From rows counted strip by strip to rows of all strips, and to vertices; begins the row sums of the filter.
  void number_corners(int64_t s) {
    std::fill(row_sum_.data() + lattice_->row[s], row_sum_.data() + lattice_->row[s + 1], 0.0f);
    for (int64_t i = lattice_->strip[s] * size_; i < lattice_->strip[s + 1] * size_; ++i) {
      const int64_t row = lattice_->strip_corner[i] + lattice_->row[s];
      lattice_->strip_corner[i] = static_cast<int32_t>(row);
      lattice_->corner[i] = number_[row];
      row_sum_[row] += lattice_->weight[i];
    }
  }

  // A step along a direction changes the level by a known number, so it says in which level to look for the vertex
  // after another one. Nobody else writes what stands before that one. Whether there is one cannot be predicted: no
  // branch.
  void find_neighbours(int64_t number) {
    constexpr int64_t soon = 16;
    const CodeTable& own = levels_[number].table;
    const auto count = static_cast<int64_t>(own.size()), levels = static_cast<int64_t>(levels_.size());
    const int32_t none = lattice_->largest_level;
    int32_t nowhere;
    for (int j = 0; j < size_; ++j) {
      int32_t* beside = lattice_->neighbour.data() + 2 * j * lattice_->vertices;
      int32_t* own_beside = beside + 2 * int64_t{lattice_->level[number]};
      const int64_t other = number + lattice_->climb(j), last = number - lattice_->climb(j);
      if (last < 0 || last >= levels)
        for (int64_t i = 0; i < count; ++i) own_beside[2 * i] = none;
      if (other < 0 || other >= levels || levels_[other].table.size() == 0) {
        for (int64_t i = 0; i < count; ++i) own_beside[2 * i + 1] = none;
        continue;
      }
      const CodeTable& table = levels_[other].table;
      int32_t* before = beside + 2 * int64_t{lattice_->level[other]};
      for (size_t i = 0; i < table.size(); ++i) before[2 * i] = none;
      for (int64_t i = 0; i < count; ++i) {
        table.prefetch(own.codes()[std::min(i + soon, count - 1)] + coding_.step[j]);
        const int32_t found = table.find(own.codes()[i] + coding_.step[j]);
        own_beside[2 * i + 1] = found < 0 ? none : found;
        *(found < 0 ? &nowhere : before + 2 * int64_t{found}) = static_cast<int32_t>(i);
      }
    }
  }

  void sum_rows(int64_t level) {
    std::fill(sum_.data() + lattice_->level[level], sum_.data() + lattice_->level[level + 1], 0.0f);
    for_rows(level, [&](int64_t row, const Strip&, int32_t) { sum_[number_[row]] += row_sum_[row]; });
  }

  void blur_sums(int direction, int64_t l) {
    const Buffer<float>& from = direction % 2 == 0 ? sum_ : blurred_;
    Buffer<float>& to = direction % 2 == 0 ? blurred_ : sum_;
    const auto& level = lattice_->level;
    const int64_t levels = static_cast<int64_t>(level.size()) - 1;
    const int64_t end = lattice_->vertices;
    const int64_t below = std::clamp<int64_t>(l - lattice_->climb(direction), 0, levels - 1);
    const int64_t above = std::clamp<int64_t>(l + lattice_->climb(direction), 0, levels - 1);
    for (int64_t v = level[l]; v < level[l + 1]; ++v) {
      const int32_t* beside = lattice_->neighbour.data() + 2 * (direction * lattice_->vertices + v);
      // The element after the last is zero. Which it is cannot be predicted: no branch.
      const int64_t has_before = -int64_t{beside[0] < lattice_->largest_level};
      const int64_t has_after = -int64_t{beside[1] < lattice_->largest_level};
      const int64_t before = end + ((level[below] + beside[0] - end) & has_before);
      const int64_t after = end + ((level[above] + beside[1] - end) & has_after);
      to[v] = from[v] + 0.5f * (from[before] + from[after]);
    }
  }

  // Multiplies the weights by the inverse root of the row sums of the filter; lists pixels with their weights.
  void normalise(int64_t s) {
    const Buffer<float>& vertex = size_ % 2 == 0 ? sum_ : blurred_;
    const float gain = 1.0f / (1.0f + std::ldexp(1.0f, 1 - size_));  // of the blur, Adams et al.
    for (int64_t place = lattice_->strip[s]; place < lattice_->strip[s + 1]; ++place) {
      float* weight = lattice_->weight.data() + place * size_;
      float sum = 0;
      for (int k = 0; k < size_; ++k) sum += weight[k] * vertex[lattice_->corner[place * size_ + k]];
      const float norm = 1.0f / std::sqrt(sum * gain + 1e-20f);
      for (int k = 0; k < size_; ++k) weight[k] *= norm;
      if (!lattice_->direct) continue;
      for (int k = 0; k < size_; ++k) {
        const int32_t at = next_source_[lattice_->strip_corner[place * size_ + k]]++;
        lattice_->source[at] |= static_cast<int32_t>(place);
        lattice_->source_weight[at] = weight[k];
      }
    }
  }

  std::shared_ptr<Lattice> lattice_ = std::make_shared<Lattice>();
  Features features_;
  Coding coding_;
  int size_;
  std::vector<uint64_t> zero_;   // corners that exist without a pixel
  std::vector<Strip> strips_;
  std::vector<Level> levels_;
  std::vector<int64_t> part_;    // first level of each part, and the end
  int32_t lowest_ = 0;           // level
  bool one_level_ = false;
  Buffer<int32_t> number_;       // of each row: its vertex, counted in the level and later in all
  Buffer<int32_t> next_source_;  // of each row, if direct: where its next pixel is listed
  Buffer<float> row_sum_;
  Buffer<float> sum_;
  Buffer<float> blurred_;
};

}  // namespace

std::shared_ptr<const Lattice> build_lattice(const Features& features, const Order& order) {
  return Builder(features, order).build();
}

size_t Lattice::bytes() const {
  return corner.bytes() + strip_corner.bytes() + weight.bytes() + source.bytes() + source_weight.bytes() +
      neighbour.bytes();
}

}  // namespace gwsss_fast
