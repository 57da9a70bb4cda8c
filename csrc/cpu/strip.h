// One strip's share of a lattice: the corners that its pixels touch.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace gwsss_fast {

// Corners are rows, in the order in which the strip's pixels meet them.
struct Strip {
  Buffer<uint64_t> code;
  Buffer<int32_t> level;
  Buffer<int32_t> entries;  // pixels' corners that are the row
  int32_t lowest = std::numeric_limits<int32_t>::max();  // level
  int32_t highest = std::numeric_limits<int32_t>::min();
  std::vector<int32_t> first;  // where each level from the lowest on begins in `row`, and the end
  Buffer<int32_t> row;         // rows level by level

  // The range of `row` that is of a level.
  const int32_t* begin(int64_t of) const { return row.data() + at(of); }
  const int32_t* end(int64_t of) const { return row.data() + at(of + 1); }

 private:
  int32_t at(int64_t of) const {
    const auto last = static_cast<int64_t>(first.size()) - 1;
    return first[of < lowest ? 0 : of - lowest < last ? of - lowest : last];
  }
};

// Of the pixels at places [begin, end). Writes their (end - begin, dimensions + 1) rows and barycentric coordinates.
Strip make_strip(const Features& features, const Coding& coding, int64_t begin, int64_t end, int32_t* row,
                 float* weight);

// Fills `first` and `row`; with `one_level` all rows are of level 0.
void sort_by_level(Strip& strip, bool one_level);

}  // namespace gwsss_fast
