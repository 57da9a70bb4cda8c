// Functions of the instruction set named GWSSS_ISA: the sources here are compiled once for each. May be included
// again with another name.
#include "../kernels.h"

namespace gwsss_fast::GWSSS_ISA {

void locate_pixels(const Features&, const Coding&, int64_t, int64_t, uint64_t*, uint32_t*, float*);
void sweep_levels(const Sweep&, int64_t, int64_t, float*);
bool forward_pixels(const PixelPass&, int64_t, int64_t, float*);
void backward_pixels(const PixelPass&, int64_t, int64_t, float*);

}  // namespace gwsss_fast::GWSSS_ISA
