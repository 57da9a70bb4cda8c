// Permutohedral lattice (Adams, Baek and Davis, 2010) over the pixels of an image.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace gwsss_fast {

// Pixels are dealt with in strips, each with rows of its own for every corner that its pixels touch. So strips run in
// parallel without meeting, and sums have the same order whatever the number of threads. Within a strip they are taken
// block by block, so that the corners of a block stay in the first cache.
struct Order {
  Order(int64_t height, int64_t width);

  std::vector<int64_t> strip;  // first place of each strip, and the end
  Buffer<int32_t> pixel;       // the pixel at each place
};

struct Lattice {
  int size = 0;  // dimensions + 1: corners of a simplex, directions of the blur
  int64_t pixels = 0;
  int64_t vertices = 0;
  bool direct = false;           // vertices are summed from pixels, not from rows of strips
  int64_t strip_rows = 0;        // rows of all strips together, 0 if direct
  std::vector<int64_t> strip;    // first place of each strip, and the end
  std::vector<int64_t> row;      // first row of each strip, and the end
  Buffer<int32_t> corner;        // (pixels + kAhead, size) vertices of each pixel's simplex, then zeros
  Buffer<int32_t> strip_corner;  // (pixels, size) the same as rows of its strip, none if direct
  Buffer<float> weight;          // (pixels, size) barycentric coordinates * symmetric normalisation
  std::vector<int32_t> source_start;  // where each level's vertices begin in `source`, and the end
  Buffer<int32_t> source;        // (strip_rows) rows that are parts of a vertex, strip by strip; or (pixels * size)
                                 // places of the pixels whose corner it is; + kFirst where the next vertex begins
  Buffer<float> source_weight;   // (pixels * size) of each of these pixels
  Buffer<int32_t> neighbour;     // (size, vertices, 2) before and after along each direction, counted in
                                 // their level; `largest_level` for none
  std::vector<int32_t> level;    // first vertex of each level, and the end; one level if there are few vertices

  int32_t largest_level = 0;     // vertices of it

  // By how many levels a step along a direction climbs: the level is the last coordinate.
  int climb(int direction) const { return level.size() == 2 ? 0 : direction == size - 1 ? size - 1 : -1; }

  size_t bytes() const;
};

// Throws std::invalid_argument when the features spread too widely to be indexed.
Coding make_coding(const Features& features);

// Codes of the corners of the simplex whose first corner is `code`, coordinates ranked as `order` says.
void corner_codes(const Coding& coding, int size, uint64_t code, uint32_t order, uint64_t* corner);

// A point's last coordinate (y or blue), which is minus the sum of the others.
int32_t level_of(const Coding& coding, int size, uint64_t code);

// Throws as make_coding does.
std::shared_ptr<const Lattice> build_lattice(const Features& features, const Order& order);

}  // namespace gwsss_fast
