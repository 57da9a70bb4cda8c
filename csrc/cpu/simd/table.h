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
void dropout_means(const DropoutPass&, int64_t, int64_t);
void dropout_scale(const DropoutPass&, int64_t, int64_t);
void gru_gates(const GruGates&, int64_t, int64_t);
void gru_blend(const GruBlend&, int64_t, int64_t);
void gru_slopes(const GruSlopes&, int64_t, int64_t);
void gru_reset(const GruReset&, int64_t, int64_t);
void gru_join(const GruJoin&, int64_t, int64_t);
void edge_positions(const EdgePositions&, int64_t, int64_t, float*, float*);
void edge_channels(const EdgeChannels&, int64_t, int64_t, float*);
void edge_channels_backward(const EdgeChannels&, int64_t, int64_t, float*, float*);
void mirror_rows(const Mirror&, int64_t, int64_t);
void winograd_input(const Winograd&, int64_t, int64_t);
void winograd_output(const Winograd&, int64_t, int64_t);
void winograd_output_gradient(const Winograd&, int64_t, int64_t);
void winograd_weight(const WinogradWeight&, int64_t, int64_t, int64_t);
void winograd_weight_gradient(const WinogradWeight&, int64_t, int64_t, int64_t);

}  // namespace gwsss_fast::GWSSS_ISA
