// Which simplex of the lattice encloses each pixel's feature. In float32 and in the order of Kraehenbuhl's
// implementation, so that pixels fall into the same simplices there and here: compiled without fused multiply-add.

#include "table.h"
#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr int kLanes = 16;

using Lanes = Vector<kLanes>;
using Bits = Integers<kLanes>;
typedef uint64_t Wide __attribute__((vector_size(8 * kLanes)));

// Features of the pixels at `count` places from `begin` on.
template <int D>
void read_features(const Features& features, int64_t begin, int64_t count, Lanes* feature) {
  const auto line = static_cast<uint32_t>(features.width);
  for (int64_t i = 0; i < count; ++i) {
    const auto pixel = static_cast<uint32_t>(features.order[begin + i]), y = pixel / line;
    feature[0][i] = static_cast<float>(static_cast<int32_t>(pixel - y * line));
    feature[1][i] = static_cast<float>(static_cast<int32_t>(y));
    for (int c = 2; c < D; ++c) feature[c][i] = static_cast<float>(features.image[3 * int64_t{pixel} + c - 2]);
  }
  for (int d = 0; d < D; ++d) feature[d] /= d < 2 ? features.sxy : features.srgb;
}

inline Lanes nearest(Lanes x) {
  const Lanes shift = Lanes{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  return (x + shift) - shift;
}

template <int D>
void locate_lanes(const Coding& coding, const Lanes* feature, Wide& code, Bits& order, Lanes* weight) {
  constexpr int size = D + 1;
  Lanes elevated[size], base[size], residual[size], total = {}, excess = {};
  Bits rank[size] = {};
  for (int j = D; j > 0; --j) {
    const Lanes scaled = feature[j - 1] * coding.scale[j - 1];
    elevated[j] = total - static_cast<float>(j) * scaled;
    total += scaled;
  }
  elevated[0] = total;
  for (int j = 0; j < size; ++j) {  // nearest lattice point of colour 0, off the plane by `excess`
    const Lanes multiple = nearest(elevated[j] * (1.0f / size));
    base[j] = multiple * static_cast<float>(size);
    excess += multiple;
    residual[j] = elevated[j] - base[j];
  }
  for (int a = 0; a < size; ++a)  // place in descending order; of equal ones the earlier coordinate comes later
    for (int b = a + 1; b < size; ++b) {
      const Bits smaller = residual[a] < residual[b];  // true is -1
      rank[a] -= smaller;
      rank[b] += 1 + smaller;
    }
  for (int j = 0; j < size; ++j) {
    rank[j] += __builtin_convertvector(excess, Bits);
    const Bits back = ((rank[j] < 0) & size) - ((rank[j] >= size) & size);
    rank[j] += back;
    base[j] += __builtin_convertvector(back, Lanes);
    residual[j] = (elevated[j] - base[j]) * (1.0f / size);
  }

  Lanes sorted[size] = {};  // residuals by rank
  for (int r = 0; r < size; ++r)
    for (int j = 0; j < size; ++j) sorted[r] = rank[j] == r ? residual[j] : sorted[r];
  weight[0] = sorted[D] + 1.0f - sorted[0];
  for (int k = 1; k < size; ++k) weight[k] = sorted[D - k] - sorted[size - k];

  code = Wide{};
  order = Bits{};
  for (int j = 0; j < D; ++j) {
    code += __builtin_convertvector(__builtin_convertvector(base[j], Bits), Wide) * coding.stride[j];
    order |= (rank[j] & 7) << (3 * j);
  }
}

template <int D>
void locate(const Features& features, const Coding& coding, int64_t begin, int64_t end, uint64_t* codes,
            uint32_t* orders, float* weights) {
  Lanes feature[D] = {}, weight[D + 1];
  Wide code;
  Bits order;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = end - first < kLanes ? end - first : kLanes, offset = first - begin;
    read_features<D>(features, first, count, feature);
    locate_lanes<D>(coding, feature, code, order, weight);
    for (int64_t i = 0; i < count; ++i) {
      codes[offset + i] = code[i];
      orders[offset + i] = static_cast<uint32_t>(order[i]);
      for (int k = 0; k <= D; ++k) weights[(offset + i) * (D + 1) + k] = weight[k][i];
    }
  }
}

}  // namespace

void locate_pixels(const Features& features, const Coding& coding, int64_t begin, int64_t end, uint64_t* codes,
                   uint32_t* orders, float* weights) {
  if (features.dimensions == 2)
    locate<2>(features, coding, begin, end, codes, orders, weights);
  else
    locate<5>(features, coding, begin, end, codes, orders, weights);
}

}  // namespace gwsss_fast::GWSSS_ISA
