// Dense CRF with Gaussian edges (Kraehenbuhl and Koltun, NIPS 2011): exact mean field on the permutohedral lattice.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define GWSSS_API __declspec(dllexport)
#else
#define GWSSS_API __attribute__((visibility("default")))
#endif

namespace gwsss_fast {

// Widths in pixels (sxy) and grey levels (srgb), Potts weights (w), mean-field updates.
struct DenseCrfOptions {
  float sxy_gaussian = 3;
  float w_gaussian = 3;
  float sxy_bilateral = 80;
  float srgb = 13;
  float w_bilateral = 10;
  int64_t iterations = 10;
};

// Marginals (labels, height, width) from label probabilities `prob` of the same shape and `image` (height, width, 3),
// 0..255. All contiguous. Computed in float32; the result does not depend on the number of threads.
// Throws std::invalid_argument, which names the argument, and std::bad_alloc.
GWSSS_API void dense_crf(
    const float* prob,
    const uint8_t* image,
    int64_t labels,
    int64_t height,
    int64_t width,
    const DenseCrfOptions& options,
    float* marginals);

// Gradient `grad_prob` (labels, height, width) of `prob` from that of the marginals. The image gets none.
GWSSS_API void dense_crf_backward(
    const float* grad,
    const float* prob,
    const uint8_t* image,
    int64_t labels,
    int64_t height,
    int64_t width,
    const DenseCrfOptions& options,
    float* grad_prob);

// Frees what is kept for a next call: lattices of the last images and widths, and memory (256 MiB each at most).
GWSSS_API void dense_crf_forget();

}  // namespace gwsss_fast
