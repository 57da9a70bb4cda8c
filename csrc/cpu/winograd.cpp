// Winograd's convolution F(2x2, 3x3) around the matrix products, float32, channels last, with a border of zeros.

#include <vector>

#include <torch/csrc/stable/library.h>

#include "kernels.h"
#include "parallel.h"
#include "tensors.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kLeastValues = int64_t{1} << 12;  // channels of tiles that a thread takes at least
constexpr int64_t kLanes = 64;                      // of weights' lines that are worked on together

using Planes = std::vector<Tensor>;

void take_planes(const char* operation, const Planes& planes, int64_t rows, int64_t columns, float** to) {
  STD_TORCH_CHECK(planes.size() == 16, operation, ": planes must be 16 tensors");
  for (const Tensor& plane : planes) {
    require_packed({operation, "planes", plane}, {rows, columns}, ScalarType::Float);
    *to++ = static_cast<float*>(plane.data_ptr());
  }
}

Winograd check_images(const char* operation, const Tensor& images, const Planes& planes, int64_t& tiles) {
  const Argument argument{operation, "images", images};
  require(images.dim() == 4, argument, "be (M, H, W, C)");
  require_packed(argument, {images.size(0), images.size(1), images.size(2), images.size(3)}, ScalarType::Float);
  Winograd pass{images.size(1), images.size(2), images.size(3), static_cast<float*>(images.data_ptr()), {}, nullptr};
  tiles = images.size(0) * ((pass.height + 1) / 2) * ((pass.width + 1) / 2);
  take_planes(operation, planes, tiles, pass.channels, pass.plane);
  return pass;
}

void run(void (*kernel)(const Winograd&, int64_t, int64_t), const Winograd& pass, int64_t tiles) {
  if (pass.channels > 0)
    parallel_for(tiles, std::max<int64_t>(1, kLeastValues / pass.channels),
                 [&](int64_t begin, int64_t end) { kernel(pass, begin, end); });
}

void input(const Tensor& images, const Planes& planes) {
  int64_t tiles;
  const Winograd pass = check_images("winograd_input", images, planes, tiles);
  run(kernels().winograd_input, pass, tiles);
}

void output(const Planes& planes, const std::optional<Tensor>& bias, const Tensor& images) {
  constexpr auto name = "winograd_output";
  int64_t tiles;
  Winograd pass = check_images(name, images, planes, tiles);
  if (bias) {
    require_packed({name, "bias", *bias}, {pass.channels}, ScalarType::Float);
    pass.bias = bias->const_data_ptr<float>();
  }
  run(kernels().winograd_output, pass, tiles);
}

void output_gradient(const Tensor& images, const Planes& planes) {
  int64_t tiles;
  const Winograd pass = check_images("winograd_output_gradient", images, planes, tiles);
  run(kernels().winograd_output_gradient, pass, tiles);
}

// weight (O, I, 3, 3). transposed: planes (I, O) of the rotated weight, for the gradient of the input.
void weights(const char* name, decltype(Kernels::winograd_weight) kernel, const Tensor& weight, bool transposed,
             const Planes& planes) {
  const Argument argument{name, "weight", weight};
  require(weight.dim() == 4, argument, "be (O, I, 3, 3)");
  const int64_t out = weight.size(0), in = weight.size(1);
  require_packed(argument, {out, in, 3, 3}, ScalarType::Float);
  WinogradWeight pass{static_cast<float*>(weight.data_ptr()), {}, in, 9 * in, 9, transposed};
  if (transposed) pass = {pass.weight, {}, out, 9, 9 * in, true};
  const int64_t lines = transposed ? in : out;
  take_planes(name, planes, lines, pass.lanes, pass.plane);
  // As the weight lies in memory: output by output, or some outputs' values for one input after the other.
  if (!transposed) {
    parallel_for(lines, 1, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) kernel(pass, line, 0, pass.lanes);
    });
  } else {
    parallel_for((pass.lanes + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        for (int64_t line = 0; line < lines; ++line)
          kernel(pass, line, block * kLanes, std::min((block + 1) * kLanes, pass.lanes));
    });
  }
}

void weight_planes(const Tensor& weight, bool transposed, const Planes& planes) {
  weights("winograd_weight", kernels().winograd_weight, weight, transposed, planes);
}

void weight_gradient(const Planes& planes, const Tensor& weight) {
  weights("winograd_weight_gradient", kernels().winograd_weight_gradient, weight, false, planes);
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("winograd_input", TORCH_BOX(&gwsss_fast::input));
  library.impl("winograd_output", TORCH_BOX(&gwsss_fast::output));
  library.impl("winograd_output_gradient", TORCH_BOX(&gwsss_fast::output_gradient));
  library.impl("winograd_weight", TORCH_BOX(&gwsss_fast::weight_planes));
  library.impl("winograd_weight_gradient", TORCH_BOX(&gwsss_fast::weight_gradient));
}
