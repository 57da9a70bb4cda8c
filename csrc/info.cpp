// What was built, for `python -m gwsss_fast.doctor`.

#include "build_info.h"
#include "cpu/kernels.h"
#include "gwsss_fast/dense_crf.h"

// One "name: value" a line.
extern "C" GWSSS_API const char* gwsss_fast_build_info() {
  return "compiler: " GWSSS_COMPILER "\nflags: " GWSSS_FLAGS "\nsanitizers: " GWSSS_SANITIZERS
         "\ninstruction sets: " GWSSS_ISAS "\nnvcc: " GWSSS_CUDA_COMPILER
         "\ncuda architectures: " GWSSS_CUDA_ARCHITECTURES "\nsources: " GWSSS_SOURCE_HASH;
}

// The instruction set in use on this processor.
extern "C" GWSSS_API const char* gwsss_fast_instruction_set() { return gwsss_fast::kernels().name; }

#ifndef USE_CUDA  // else in cuda/device.cu
extern "C" GWSSS_API const char* gwsss_fast_cuda_problem() { return "it was built without nvcc"; }
#endif
