#include "strip.h"

#include <algorithm>
#include <array>
#include <utility>

#include "code_table.h"
#include "lattice.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kLocated = 512;  // pixels located at a time
constexpr int64_t kSoon = 8;       // simplices by which corners are fetched before they are looked up

// The simplices of a few pixels: neighbouring pixels often share one.
struct Simplices {
  struct Simplex {
    uint64_t code;
    uint32_t order;
    int32_t row[kMaxDimensions + 1];
  };
  std::array<Simplex, kLocated> simplex;
  std::array<int16_t, kLocated> of;  // each pixel's
  int64_t count;

  void find(const uint64_t* codes, const uint32_t* orders, int64_t pixels) {
    std::array<int16_t, 512> recent{};
    count = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      int16_t& last = recent[((codes[i] + orders[i]) * 0x9E3779B97F4A7C15ull) >> 55];
      if (last >= count || simplex[last].code != codes[i] || simplex[last].order != orders[i]) {
        last = static_cast<int16_t>(count);
        simplex[count].code = codes[i];
        simplex[count++].order = orders[i];
      }
      of[i] = last;
    }
  }
};

// Corners become rows, new ones with their levels.
class Corners {
 public:
  Corners(const Coding& coding, int size) : coding_(coding), size_(size) {}

  void look_up(Simplices& simplices) {
    std::array<std::array<uint64_t, kMaxDimensions + 1>, 2 * kSoon> corner;
    for (int64_t i = 0; i < simplices.count + kSoon; ++i) {
      if (i < simplices.count) {
        auto& soon = corner[i % (2 * kSoon)];
        corner_codes(coding_, size_, simplices.simplex[i].code, simplices.simplex[i].order, soon.data());
        for (int k = 0; k < size_; ++k) table_.prefetch(soon[k]);
      }
      if (i < kSoon) continue;
      auto& simplex = simplices.simplex[i - kSoon];
      for (int k = 0; k < size_; ++k) simplex.row[k] = table_.insert(corner[(i - kSoon) % (2 * kSoon)][k]);
    }
  }

  Strip strip() const {
    Strip strip;
    strip.code = Buffer<uint64_t>(table_.size());
    strip.level = Buffer<int32_t>(table_.size());
    std::copy_n(table_.codes(), table_.size(), strip.code.data());
    for (size_t i = 0; i < table_.size(); ++i) {
      strip.level[i] = level_of(coding_, size_, strip.code[i]);
      strip.lowest = std::min(strip.lowest, strip.level[i]);
      strip.highest = std::max(strip.highest, strip.level[i]);
    }
    strip.entries = Buffer<int32_t>(table_.size());
    std::fill_n(strip.entries.data(), table_.size(), 0);
    return strip;
  }

 private:
  const Coding& coding_;
  int size_;
  CodeTable table_{1024};
};

}  // namespace

Strip make_strip(const Features& features, const Coding& coding, int64_t begin, int64_t end, int32_t* row,
                 float* weight) {
  const int size = features.dimensions + 1;
  Corners corners(coding, size);
  std::array<uint64_t, kLocated> codes;
  std::array<uint32_t, kLocated> orders;
  Simplices simplices;
  for (int64_t first = begin; first < end; first += kLocated) {
    const int64_t count = std::min(kLocated, end - first), offset = (first - begin) * size;
    kernels().locate(features, coding, first, first + count, codes.data(), orders.data(), weight + offset);
    simplices.find(codes.data(), orders.data(), count);
    corners.look_up(simplices);
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(simplices.simplex[simplices.of[i]].row, size, row + offset + i * size);
  }
  Strip strip = corners.strip();
  for (int64_t i = 0; i < (end - begin) * size; ++i) ++strip.entries[row[i]];
  return strip;
}

void sort_by_level(Strip& strip, bool one_level) {
  if (one_level) {
    std::fill_n(strip.level.data(), strip.level.size(), 0);
    strip.lowest = strip.highest = 0;
  }
  std::vector<int32_t>& first = strip.first;
  first.assign(int64_t{strip.highest} - strip.lowest + 2, 0);
  for (size_t i = 0; i < strip.level.size(); ++i) ++first[strip.level[i] - strip.lowest + 1];
  for (size_t l = 1; l < first.size(); ++l) first[l] += first[l - 1];
  const size_t rows = strip.level.size();
  strip.row = Buffer<int32_t>(rows);
  Buffer<uint64_t> code(rows);
  Buffer<int32_t> entries(rows);
  std::vector<int32_t> next = first;
  for (size_t i = 0; i < rows; ++i) {
    const int32_t at = next[strip.level[i] - strip.lowest]++;
    strip.row[at] = static_cast<int32_t>(i);
    code[at] = strip.code[i];
    entries[at] = strip.entries[i];
  }
  strip.code = std::move(code);
  strip.entries = std::move(entries);
  strip.level = Buffer<int32_t>();
}

}  // namespace gwsss_fast
