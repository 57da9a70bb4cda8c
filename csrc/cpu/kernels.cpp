// Which instruction set runs. Every other file but cpu/simd/ is compiled for the oldest processor.

#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#define GWSSS_ISA baseline
#include "simd/table.h"
#undef GWSSS_ISA
#if defined(GWSSS_X86)
#define GWSSS_ISA avx2
#include "simd/table.h"
#undef GWSSS_ISA
#define GWSSS_ISA avx512
#include "simd/table.h"
#undef GWSSS_ISA
#endif

namespace gwsss_fast {
namespace {

// In the order of the struct's members.
#define GWSSS_TABLE(isa)                                                                                     \
  Kernels {                                                                                                  \
    #isa, isa::locate_pixels, isa::sweep_levels, isa::forward_pixels, isa::backward_pixels,                  \
        isa::softmax_rows, isa::softmax_gradient_rows,                                                       \
        isa::widen, isa::accumulate, isa::sum_float, isa::sum_bfloat16, isa::narrow_sum,                     \
        isa::dropout_means, isa::dropout_scale,                                                              \
        isa::gru_gates, isa::gru_blend, isa::gru_slopes, isa::gru_reset, isa::gru_join,                      \
        isa::edge_positions, isa::edge_channels, isa::edge_channels_backward, isa::mirror_rows,              \
        isa::winograd_input, isa::winograd_output, isa::winograd_output_gradient,                            \
        isa::winograd_weight, isa::winograd_weight_gradient                                                  \
  }

Kernels choose() {
#if defined(GWSSS_X86)
  const char* wanted = std::getenv("GWSSS_CPU");
  const bool known = wanted != nullptr && (std::strcmp(wanted, "baseline") == 0 || std::strcmp(wanted, "avx2") == 0 ||
                                           std::strcmp(wanted, "avx512") == 0);
  const bool any = !known;
  if (wanted != nullptr && *wanted != '\0' && !known)
    std::fprintf(stderr, "gwsss_fast: GWSSS_CPU=%s is not baseline, avx2 or avx512; it has no effect\n", wanted);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (any || std::strcmp(wanted, "avx512") == 0)) return GWSSS_TABLE(avx512);
  if (avx2 && (any || std::strcmp(wanted, "baseline") != 0)) return GWSSS_TABLE(avx2);
#endif
  return GWSSS_TABLE(baseline);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace gwsss_fast
