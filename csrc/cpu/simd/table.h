// Functions of the instruction set named GWSSS_ISA: the sources here are compiled once for each. May be included
// again with another name.
#include "../kernels.h"

namespace gwsss_fast::GWSSS_ISA {

void locate_pixels(const Features&, const Coding&, int64_t, int64_t, uint64_t*, uint32_t*, float*);
void sweep_levels(const Sweep&, int64_t, int64_t, float*);
bool forward_pixels(const PixelPass&, int64_t, int64_t, float*);
void backward_pixels(const PixelPass&, int64_t, int64_t, float*);
void softmax_rows(const SoftmaxRows&, int64_t, int64_t);
void softmax_gradient_rows(const SoftmaxGradientRows&, int64_t, int64_t);
void widen(const BFloat16*, int64_t, float*);
void accumulate(const BFloat16*, int64_t, float*);
void sum_float(const float*, float, const float*, int64_t, float*);
void sum_bfloat16(const BFloat16*, float, const BFloat16*, int64_t, BFloat16*);
void narrow_sum(const float*, const float*, int64_t, BFloat16*);

}  // namespace gwsss_fast::GWSSS_ISA
