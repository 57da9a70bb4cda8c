// What plain C++ asks of CUDA.
#pragma once

namespace gwsss_fast {

// Makes a GPU the current one. torch's guard does so for torch's CUDA runtime; this library brings its own.
void use_gpu(int device);

}  // namespace gwsss_fast
