// What the dense CRF is on every device.
#pragma once

#include <cstdint>

#include "gwsss_fast/dense_crf.h"

namespace gwsss_fast {

constexpr float kSmallest = 1e-5f;  // probabilities are clipped to [kSmallest, 1]

// Throws std::invalid_argument, which names the argument.
void check_dense_crf(int64_t labels, int64_t height, int64_t width, const DenseCrfOptions& options);

}  // namespace gwsss_fast
