#include "lattice.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "code_table.h"
#include "parallel.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kLocated = 512;       // pixels located at a time
constexpr int64_t kParts = 16;          // parts of the vertices that threads take
constexpr int64_t kLeastSorted = 8192;  // rows; fewer stay in the second cache anyway

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

// Builds a lattice in phases, whose work is cut the same way whatever the number of threads. Vertices are numbered
// level by level. The levels are dealt out in parts, so that each part can be numbered for itself.
class Builder {
 public:
  Builder(const Features& features, const Order& order)
      : features_(features), coding_(make_coding(features)), size_(features.dimensions + 1) {
    lattice->size = size_;
    lattice->pixels = features.height * features.width;
    lattice->strip = order.strip;
    const int64_t entries = lattice->pixels * size_;
    lattice->corner = Buffer<int32_t>(entries + kAhead * size_);
    std::fill_n(lattice->corner.data() + entries, kAhead * size_, 0);
    lattice->strip_corner = Buffer<int32_t>(entries);
    lattice->weight = Buffer<float>(entries);
    strips_.resize(strips());
    parts_.resize(kParts);
    if (lattice->pixels % 4 != 0) find_zero();
  }

  std::vector<Phase> phases() {
    std::vector<Phase> plan;
    plan.push_back({strips(), [this](int64_t s) { build_strip(s); }});
    plan.push_back({1, [this](int64_t) { deal_levels(); }});
    plan.push_back({strips(), [this](int64_t s) { sort_rows(s); }});
    plan.push_back({kParts, [this](int64_t i) { number_vertices(parts_[i]); }});
    plan.push_back({1, [this](int64_t) { place_parts(); }});
    plan.push_back({kParts, [this](int64_t i) { list_sources(parts_[i]); }});
    plan.push_back({strips(), [this](int64_t s) { number_corners(s); }});
    plan.push_back({kParts, [this](int64_t i) { find_neighbours(parts_[i]); }});
    plan.push_back({kParts, [this](int64_t i) { sum_rows(parts_[i]); }});
    for (int j = 0; j < size_; ++j)
      plan.push_back({kParts, [this, j](int64_t i) { blur_sums(j, parts_[i]); }});
    plan.push_back({strips(), [this](int64_t s) { normalise(s); }});
    return plan;
  }

  std::shared_ptr<Lattice> lattice = std::make_shared<Lattice>();

 private:
  // What a strip knows of its rows.
  struct Strip {
    Buffer<uint64_t> code;
    Buffer<int32_t> level;
    int32_t lowest = std::numeric_limits<int32_t>::max();
    int32_t highest = std::numeric_limits<int32_t>::min();
    std::array<int32_t, kParts + 1> part;  // first entry of each part in `row`, and the end
    Buffer<int32_t> row;                   // rows by part, counted in the strip
  };

  // Some levels and their vertices.
  struct Part {
    int64_t first_level = 0, end_level = 0;
    int64_t vertex = 0, source = 0;  // where its vertices and their sources begin
    int64_t vertices() const { return static_cast<int64_t>(code.size()); }
    CodeTable table{64};             // from codes to places: vertices counted in the part
    Buffer<uint64_t> code;           // by place
    std::vector<int32_t> level;      // first place of each level, and the end
  };

  int64_t strips() const { return static_cast<int64_t>(lattice->strip.size()) - 1; }

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
    Strip& strip = strips_[number];
    strip.code = Buffer<uint64_t>(table.size());
    strip.level = Buffer<int32_t>(table.size());
    for (size_t i = 0; i < table.size(); ++i) {
      strip.code[i] = table.codes()[i];
      strip.level[i] = level_of(coding_, size_, strip.code[i]);
      strip.lowest = std::min(strip.lowest, strip.level[i]);
      strip.highest = std::max(strip.highest, strip.level[i]);
    }
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

  // Which levels there are, and which part each belongs to. Few vertices are one level, in the order of their rows.
  void deal_levels() {
    lattice->row.assign(1, 0);
    int32_t lowest = std::numeric_limits<int32_t>::max(), highest = std::numeric_limits<int32_t>::min();
    for (const Strip& strip : strips_) {
      lattice->row.push_back(lattice->row.back() + static_cast<int64_t>(strip.code.size()));
      lowest = std::min(lowest, strip.lowest);
      highest = std::max(highest, strip.highest);
    }
    for (const uint64_t code : zero_) {
      lowest = std::min(lowest, level_of(coding_, size_, code));
      highest = std::max(highest, level_of(coding_, size_, code));
    }
    const int64_t rows = lattice->strip_rows = lattice->row.back();
    one_level_ = rows < kLeastSorted;
    lowest_ = lowest;
    const int64_t levels = one_level_ ? 1 : int64_t{highest} - lowest + 1;
    part_of_.assign(levels, 0);
    std::vector<int64_t> count(levels, 0);
    for (const Strip& strip : strips_)
      for (size_t i = 0; i < strip.level.size(); ++i) ++count[place_of(strip.level[i])];
    int64_t dealt = 0;
    for (int64_t level = 0; level < levels; ++level) {
      const int64_t part = std::min(kParts * dealt / rows, kParts - 1);
      part_of_[level] = static_cast<int32_t>(part);
      dealt += count[level];
    }
    for (int64_t part = 0, level = 0; part < kParts; ++part) {
      parts_[part].first_level = level;
      while (level < levels && part_of_[level] == part) ++level;
      parts_[part].end_level = level;
    }
    number_ = Buffer<int32_t>(rows);
    row_sum_ = Buffer<float>(rows);
    lattice->source = Buffer<int32_t>(rows);
  }

  int64_t place_of(int32_t level) const { return one_level_ ? 0 : int64_t{level} - lowest_; }

  // Lists a strip's rows part by part.
  void sort_rows(int64_t number) {
    Strip& strip = strips_[number];
    std::array<int32_t, kParts + 1> next{};
    for (size_t i = 0; i < strip.level.size(); ++i) ++next[part_of_[place_of(strip.level[i])] + 1];
    for (int64_t part = 0; part < kParts; ++part) next[part + 1] += next[part];
    strip.part = next;
    strip.row = Buffer<int32_t>(strip.code.size());
    for (size_t i = 0; i < strip.code.size(); ++i)
      strip.row[next[part_of_[place_of(strip.level[i])]]++] = static_cast<int32_t>(i);
  }

  // Calls f(row counted in all strips, strip, row counted in the strip) for the rows of a part, strip by strip.
  template <class F>
  void for_rows(const Part& part, F&& f) const {
    const int64_t number = &part - parts_.data();
    for (int64_t s = 0; s < strips(); ++s)
      for (int32_t i = strips_[s].part[number]; i < strips_[s].part[number + 1]; ++i)
        f(lattice->row[s] + strips_[s].row[i], strips_[s], strips_[s].row[i]);
  }

  int64_t rows_of(const Part& part) const {
    const int64_t number = &part - parts_.data();
    int64_t rows = 0;
    for (const Strip& strip : strips_) rows += strip.part[number + 1] - strip.part[number];
    return rows;
  }

  // Numbers a part's vertices in the order of their rows, and places them level by level.
  void number_vertices(Part& part) {
    part.table = CodeTable(rows_of(part));
    Buffer<int32_t> levels(rows_of(part) + zero_.size());  // of the vertices
    const auto insert = [&](uint64_t code, int64_t level) {
      const int32_t number = part.table.insert(code);
      levels[number] = static_cast<int32_t>(level - part.first_level);
      return number;
    };
    for_rows(part, [&](int64_t row, const Strip& strip, int32_t i) {
      number_[row] = insert(strip.code[i], place_of(strip.level[i]));
    });
    for (const uint64_t code : zero_)
      if (const int64_t level = place_of(level_of(coding_, size_, code)); level >= part.first_level && level < part.end_level)
        insert(code, level);
    part.level.assign(part.end_level - part.first_level + 1, 0);
    const size_t count = part.table.size();
    for (size_t v = 0; v < count; ++v) ++part.level[levels[v] + 1];
    for (size_t l = 0; l + 1 < part.level.size(); ++l) part.level[l + 1] += part.level[l];
    std::vector<int32_t> next = part.level;
    Buffer<int32_t> place(count);
    part.code = Buffer<uint64_t>(count);
    for (size_t v = 0; v < count; ++v) {
      place[v] = next[levels[v]]++;
      part.code[place[v]] = part.table.codes()[v];
    }
    part.table.renumber(place.data());
    for_rows(part, [&](int64_t row, const Strip&, int32_t) { number_[row] = place[number_[row]]; });
  }

  // Where the vertices of each part begin.
  void place_parts() {
    int64_t vertices = 0, sources = 0;
    lattice->level.assign(1, 0);
    for (Part& part : parts_) {
      part.vertex = vertices;
      part.source = sources;
      for (size_t l = 0; l + 1 < part.level.size(); ++l) {
        lattice->level.push_back(static_cast<int32_t>(vertices + part.level[l + 1]));
        lattice->largest_level = std::max(lattice->largest_level, part.level[l + 1] - part.level[l]);
      }
      vertices += part.vertices();
      sources += rows_of(part);
    }
    lattice->vertices = vertices;
    lattice->source_start = Buffer<int32_t>(vertices + 1);
    lattice->source_start[vertices] = static_cast<int32_t>(sources);
    lattice->neighbour = Buffer<int32_t>(2 * size_ * vertices);
    in_level_ = Buffer<int32_t>(vertices);
    for (Buffer<float>* sums : {&sum_, &blurred_}) {
      *sums = Buffer<float>(vertices + 1);
      (*sums)[vertices] = 0;
    }
  }

  // The rows of each vertex of a part, strip by strip; number_[row] becomes the vertex.
  void list_sources(Part& part) {
    const int64_t count = part.vertices();
    for (size_t l = 0; l + 1 < part.level.size(); ++l)
      for (int32_t place = part.level[l]; place < part.level[l + 1]; ++place)
        in_level_[part.vertex + place] = place - part.level[l];
    Buffer<int32_t> next(count + 1);
    std::fill_n(next.data(), count + 1, 0);
    for_rows(part, [&](int64_t row, const Strip&, int32_t) { ++next[number_[row] + 1]; });
    next[0] = static_cast<int32_t>(part.source);
    for (int64_t v = 0; v < count; ++v) {
      next[v + 1] += next[v];
      lattice->source_start[part.vertex + v] = next[v];
    }
    for_rows(part, [&](int64_t row, const Strip&, int32_t) {
      const int32_t place = number_[row];
      lattice->source[next[place]++] = static_cast<int32_t>(row);
      number_[row] = static_cast<int32_t>(part.vertex + place);
    });
    for (int j = 0; j < size_; ++j)
      std::fill_n(lattice->neighbour.data() + 2 * (j * lattice->vertices + part.vertex), 2 * count,
                  lattice->largest_level);
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

  // A step along a direction changes the level by a known number, so it says in which part to look for the vertex after
  // another one. Nobody else writes what stands before that one.
  void find_neighbours(const Part& part) {
    constexpr int64_t ahead = 4;
    const auto levels = static_cast<int64_t>(part_of_.size());
    int32_t* neighbour = lattice->neighbour.data();
    for (int64_t l = part.first_level; l < part.end_level; ++l) {
      const Part* others[kMaxDimensions + 1];
      for (int j = 0; j < size_; ++j) {
        const int64_t other = l + lattice->climb(j);
        others[j] = other < 0 || other >= levels ? nullptr : &parts_[part_of_[other]];
      }
      const int32_t first = part.level[l - part.first_level], end = part.level[l - part.first_level + 1];
      for (int64_t place = first; place < end; ++place) {
        if (place + ahead < end)
          for (int j = 0; j < size_; ++j)
            if (others[j] != nullptr) others[j]->table.prefetch(part.code[place + ahead] + coding_.step[j]);
        const int64_t own = part.vertex + place;
        for (int j = 0; j < size_; ++j) {
          const int32_t found = others[j] == nullptr ? -1 : others[j]->table.find(part.code[place] + coding_.step[j]);
          if (found < 0) continue;
          const int64_t after = others[j]->vertex + found;
          neighbour[2 * (j * lattice->vertices + own) + 1] = in_level_[after];
          neighbour[2 * (j * lattice->vertices + after)] = static_cast<int32_t>(place - first);
        }
      }
    }
  }

  void sum_rows(const Part& part) {
    const int64_t end = part.vertex + part.vertices();
    for (int64_t v = part.vertex; v < end; ++v) {
      float sum = 0;
      for (int32_t i = lattice->source_start[v]; i < lattice->source_start[v + 1]; ++i)
        sum += row_sum_[lattice->source[i]];
      sum_[v] = sum;
    }
  }

  void blur_sums(int direction, const Part& part) {
    const Buffer<float>& from = direction % 2 == 0 ? sum_ : blurred_;
    Buffer<float>& to = direction % 2 == 0 ? blurred_ : sum_;
    const auto& level = lattice->level;
    const int64_t levels = static_cast<int64_t>(level.size()) - 1;
    for (int64_t l = part.first_level; l < part.end_level; ++l) {
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
  std::vector<uint64_t> zero_;    // corners that exist without a pixel
  std::vector<Strip> strips_;
  std::vector<Part> parts_;
  std::vector<int32_t> part_of_;  // of each level
  int32_t lowest_ = 0;            // level
  bool one_level_ = false;
  Buffer<int32_t> number_;        // of each row: its vertex, counted in the part and later in all
  Buffer<int32_t> in_level_;      // of each vertex: its number in its level
  Buffer<float> row_sum_;
  Buffer<float> sum_;
  Buffer<float> blurred_;
};

}  // namespace

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
