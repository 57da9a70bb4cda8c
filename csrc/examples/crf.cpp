// The dense CRF without Python: noisy labels of an image of two halves become clean.

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include <gwsss_fast/dense_crf.h>

int main() {
  constexpr int64_t labels = 2, height = 60, width = 80, pixels = height * width;
  std::vector<uint8_t> image(3 * pixels);
  std::vector<float> prob(labels * pixels), marginals(labels * pixels);
  uint32_t random = 1;
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t truth = i % width < width / 2 ? 0 : 1;
    for (int64_t c = 0; c < 3; ++c) image[3 * i + c] = truth == 0 ? 40 : 200;
    random = random * 1664525u + 1013904223u;
    const int64_t seen = random >> 24 < 77 ? 1 - truth : truth;  // three in ten are wrong
    prob[seen * pixels + i] = 0.7f;
    prob[(1 - seen) * pixels + i] = 0.3f;
  }

  gwsss_fast::dense_crf(prob.data(), image.data(), labels, height, width, {}, marginals.data());

  int64_t before = 0, after = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const bool right = i % width >= width / 2;
    before += (prob[pixels + i] > prob[i]) == right;
    after += (marginals[pixels + i] > marginals[i]) == right;
  }
  std::printf("%.1f %% of the pixels right before, %.1f %% after\n", 100.0 * before / pixels, 100.0 * after / pixels);
  try {
    gwsss_fast::dense_crf(prob.data(), image.data(), 0, height, width, {}, marginals.data());
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
    return after > before ? 0 : 1;
  }
  return 1;
}
