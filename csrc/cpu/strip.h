// One strip's share of a lattice: the corners that its pixels touch.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace gwsss_fast {

// Corners are rows, numbered in the order in which the strip's pixels meet them. Here they are in that order at first,
// and then sorted by level.
struct Strip {
  Buffer<uint64_t> code;
  Buffer<int32_t> level;
  Buffer<int32_t> entries;  // pixels' corners that are the row
  int32_t lowest = std::numeric_limits<int32_t>::max();  // level
  int32_t highest = std::numeric_limits<int32_t>::min();
  std::vector<int32_t> first;  // where each level from the lowest on begins, and the end
  Buffer<int32_t> row;         // the sorted rows' numbers

  // The range of the sorted rows that are of a level.
  int32_t begin(int64_t of) const {
    const auto last = static_cast<int64_t>(first.size()) - 1;
    return first[of < lowest ? 0 : of - lowest < last ? of - lowest : last];
  }
  int32_t end(int64_t of) const { return begin(of + 1); }
};

// Of the pixels at places [begin, end). Writes their (end - begin, dimensions + 1) rows and barycentric coordinates.
Strip make_strip(const Features& features, const Coding& coding, int64_t begin, int64_t end, int32_t* row,
                 float* weight);

// Sorts rows, whose levels are no longer told then; with `one_level` all are of level 0.
void sort_by_level(Strip& strip, bool one_level);

}  // namespace gwsss_fast
