// Which simplex of the lattice encloses each pixel's feature. In float32 and in the order of Kraehenbuhl's
// implementation, so that pixels fall into the same simplices there and here: compiled without fused multiply-add.

#include "../kernels.h"
#include "table.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr int kLanes = 16;

template <class T>
using Lanes = T[kLanes];

// Features of the pixels at `count` places from `begin` on.
template <int D>
void read_features(const Features& features, int64_t begin, int64_t count, Lanes<float>* feature) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pixel = features.order[begin + i], y = pixel / features.width, x = pixel - y * features.width;
    feature[0][i] = static_cast<float>(x);
    feature[1][i] = static_cast<float>(y);
    for (int c = 2; c < D; ++c) feature[c][i] = static_cast<float>(features.image[3 * pixel + c - 2]);
  }
  for (int d = 0; d < D; ++d) {
    const float width = d < 2 ? features.sxy : features.srgb;
    for (int i = 0; i < kLanes; ++i) feature[d][i] /= width;
  }
}

template <int D>
void locate_lanes(const Coding& coding, Lanes<float>* feature, Lanes<uint64_t>& code, Lanes<uint32_t>& order,
                  Lanes<float>* weight) {
  constexpr int size = D + 1;
  Lanes<float> elevated[size], base[size], residual[size], total = {}, excess = {};
  Lanes<int32_t> rank[size] = {};
  for (int j = D; j > 0; --j)
    for (int i = 0; i < kLanes; ++i) {
      const float scaled = feature[j - 1][i] * coding.scale[j - 1];
      elevated[j][i] = total[i] - static_cast<float>(j) * scaled;
      total[i] += scaled;
    }
  for (int i = 0; i < kLanes; ++i) elevated[0][i] = total[i];
  for (int j = 0; j < size; ++j)  // nearest lattice point of colour 0, off the plane by `excess`
    for (int i = 0; i < kLanes; ++i) {
      const float multiple = __builtin_rintf(elevated[j][i] * (1.0f / size));
      base[j][i] = multiple * size;
      excess[i] += multiple;
      residual[j][i] = elevated[j][i] - base[j][i];
    }
  for (int a = 0; a < size; ++a)  // place in descending order; of equal ones the earlier coordinate comes later
    for (int b = a + 1; b < size; ++b)
      for (int i = 0; i < kLanes; ++i) {
        const int32_t smaller = residual[a][i] < residual[b][i];
        rank[a][i] += smaller;
        rank[b][i] += 1 - smaller;
      }
  for (int j = 0; j < size; ++j)
    for (int i = 0; i < kLanes; ++i) {
      rank[j][i] += static_cast<int32_t>(excess[i]);
      const int32_t back = (rank[j][i] < 0 ? size : 0) - (rank[j][i] >= size ? size : 0);
      rank[j][i] += back;
      base[j][i] += static_cast<float>(back);
      residual[j][i] = (elevated[j][i] - base[j][i]) * (1.0f / size);
    }

  Lanes<float> sorted[size] = {};  // residuals by rank
  for (int r = 0; r < size; ++r)
    for (int j = 0; j < size; ++j)
      for (int i = 0; i < kLanes; ++i) sorted[r][i] = rank[j][i] == r ? residual[j][i] : sorted[r][i];
  for (int i = 0; i < kLanes; ++i) weight[0][i] = sorted[D][i] + 1.0f - sorted[0][i];
  for (int k = 1; k < size; ++k)
    for (int i = 0; i < kLanes; ++i) weight[k][i] = sorted[D - k][i] - sorted[size - k][i];

  for (int i = 0; i < kLanes; ++i) {
    code[i] = 0;
    order[i] = 0;
  }
  for (int j = 0; j < D; ++j)
    for (int i = 0; i < kLanes; ++i) {
      code[i] += static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(base[j][i]))) * coding.stride[j];
      order[i] |= static_cast<uint32_t>(rank[j][i] & 7) << (3 * j);
    }
}

template <int D>
void locate(const Features& features, const Coding& coding, int64_t begin, int64_t end, uint64_t* codes,
            uint32_t* orders, float* weights) {
  Lanes<float> feature[D] = {}, weight[D + 1];
  Lanes<uint64_t> code;
  Lanes<uint32_t> order;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = end - first < kLanes ? end - first : kLanes, offset = first - begin;
    read_features<D>(features, first, count, feature);
    locate_lanes<D>(coding, feature, code, order, weight);
    for (int64_t i = 0; i < count; ++i) {
      codes[offset + i] = code[i];
      orders[offset + i] = order[i];
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
