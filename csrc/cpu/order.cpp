// The order in which pixels are dealt with.

#include <algorithm>

#include "lattice.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kMaxStrips = 16;       // more would share more corners
constexpr int64_t kLeastOfStrip = 2048;  // pixels
constexpr int64_t kBlockWidth = 16;      // pixels

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

}  // namespace gwsss_fast
