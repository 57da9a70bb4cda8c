// How lattice points become integers.

#include <cmath>
#include <stdexcept>
#include <string>

#include "lattice.h"

namespace gwsss_fast {
namespace {

constexpr double kLargestCoordinate = 1 << 20;  // float32 tells neighbours apart

}  // namespace

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

int32_t level_of(const Coding& coding, int size, uint64_t code) {
  for (int j = 0; j + 1 < size; ++j) code -= static_cast<uint64_t>(coding.lowest[j]) * coding.stride[j];
  int64_t sum = 0;
  for (int j = size - 2; j >= 0; --j) {
    const uint64_t digit = code / coding.stride[j];
    code -= digit * coding.stride[j];
    sum += static_cast<int64_t>(digit) + coding.lowest[j];
  }
  return static_cast<int32_t>(-sum);
}

}  // namespace gwsss_fast
