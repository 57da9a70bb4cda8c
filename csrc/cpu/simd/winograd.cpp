// Transforms of Winograd's convolution F(2x2, 3x3): a convolution of 3 x 3 becomes 16 matrix products, with 16
// multiplications for four values instead of 36. Patches, products and weights are 4 x 4, one plane for each place.

#include "table.h"
#include "values.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

// f(one, other, from, to) transforms the lines and then the columns of a matrix: `one` lanes into `other` lanes.
template <int From, int To, class F>
inline void both_ways(const Floats (&from)[From][From], Floats (&to)[To][To], F&& f) {
  Floats half[To][From];
  for (int column = 0; column < From; ++column) {
    Floats in[From], out[To];
    for (int i = 0; i < From; ++i) in[i] = from[i][column];
    f(in, out);
    for (int i = 0; i < To; ++i) half[i][column] = out[i];
  }
  for (int line = 0; line < To; ++line) f(half[line], to[line]);
}

// Pixels of a tile's 4 x 4 patch, of which the inner 2 x 2 are the tile's own; null outside of the image.
struct Patch {
  float* pixel[4][4];

  Patch(const Winograd& pass, int64_t tile) {
    const int64_t across = (pass.width + 1) / 2, down = (pass.height + 1) / 2;
    const int64_t image = tile / (across * down), top = 2 * (tile / across % down) - 1, left = 2 * (tile % across) - 1;
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < pass.height && x >= 0 && x < pass.width;
        pixel[i][j] = inside ? pass.images + ((image * pass.height + y) * pass.width + x) * pass.channels : nullptr;
      }
  }
};

// Calls f(patch, first value of the tile in the planes, first channel, lanes).
template <class F>
inline void for_tiles(const Winograd& pass, int64_t begin, int64_t end, F&& f) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const Patch patch(pass, tile);
    for_lanes(pass.channels, [&](int64_t at, auto lanes) { f(patch, tile * pass.channels + at, at, lanes); });
  }
}

}  // namespace

void winograd_input(const Winograd& pass, int64_t begin, int64_t end) {
  for_tiles(pass, begin, end, [&](const Patch& patch, int64_t place, int64_t at, auto lanes) {
    Floats d[4][4], v[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j)
        d[i][j] = patch.pixel[i][j] != nullptr ? read(patch.pixel[i][j] + at, lanes) : Floats{};
    both_ways<4, 4>(d, v, [](const Floats(&x)[4], Floats(&y)[4]) {
      y[0] = x[0] - x[2];
      y[1] = x[1] + x[2];
      y[2] = x[2] - x[1];
      y[3] = x[1] - x[3];
    });
    for (int i = 0; i < 16; ++i) write(pass.plane[i] + place, v[i / 4][i % 4], lanes);
  });
}

void winograd_output(const Winograd& pass, int64_t begin, int64_t end) {
  for_tiles(pass, begin, end, [&](const Patch& patch, int64_t place, int64_t at, auto lanes) {
    Floats m[4][4], y[2][2];
    for (int i = 0; i < 16; ++i) m[i / 4][i % 4] = read(pass.plane[i] + place, lanes);
    both_ways<4, 2>(m, y, [](const Floats(&x)[4], Floats(&y)[2]) {
      y[0] = x[0] + x[1] + x[2];
      y[1] = x[1] - x[2] - x[3];
    });
    const Floats bias = pass.bias != nullptr ? read(pass.bias + at, lanes) : Floats{};
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j)
        if (float* pixel = patch.pixel[1 + i][1 + j]) write(pixel + at, y[i][j] + bias, lanes);
  });
}

void winograd_output_gradient(const Winograd& pass, int64_t begin, int64_t end) {
  for_tiles(pass, begin, end, [&](const Patch& patch, int64_t place, int64_t at, auto lanes) {
    Floats y[2][2], m[4][4];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const float* pixel = patch.pixel[1 + i][1 + j];
        y[i][j] = pixel != nullptr ? read(pixel + at, lanes) : Floats{};
      }
    both_ways<2, 4>(y, m, [](const Floats(&x)[2], Floats(&y)[4]) {
      y[0] = x[0];
      y[1] = x[0] + x[1];
      y[2] = x[0] - x[1];
      y[3] = -x[1];
    });
    for (int i = 0; i < 16; ++i) write(pass.plane[i] + place, m[i / 4][i % 4], lanes);
  });
}

void winograd_weight(const WinogradWeight& pass, int64_t line, int64_t begin, int64_t end) {
  for (int64_t lane = begin; lane < end; lane += kNative) {
    const int64_t count = end - lane < kNative ? end - lane : kNative;
    float values[9][kNative] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float* weight = pass.weight + line * pass.line_stride + (lane + i) * pass.lane_stride;
      for (int k = 0; k < 9; ++k) values[pass.rotated ? 8 - k : k][i] = weight[k];
    }
    Floats g[3][3], u[4][4];
    for (int k = 0; k < 9; ++k) g[k / 3][k % 3] = read(values[k], Whole());
    both_ways<3, 4>(g, u, [](const Floats(&x)[3], Floats(&y)[4]) {
      const Floats ends = x[0] + x[2];
      y[0] = x[0];
      y[1] = 0.5f * (ends + x[1]);
      y[2] = 0.5f * (ends - x[1]);
      y[3] = x[2];
    });
    for (int i = 0; i < 16; ++i) write(pass.plane[i] + line * pass.lanes + lane, u[i / 4][i % 4], count);
  }
}

void winograd_weight_gradient(const WinogradWeight& pass, int64_t line, int64_t begin, int64_t end) {
  for (int64_t lane = begin; lane < end; lane += kNative) {
    const int64_t count = end - lane < kNative ? end - lane : kNative;
    Floats u[4][4], g[3][3];
    for (int i = 0; i < 16; ++i) u[i / 4][i % 4] = read(pass.plane[i] + line * pass.lanes + lane, count);
    both_ways<4, 3>(u, g, [](const Floats(&x)[4], Floats(&y)[3]) {
      const Floats middle = 0.5f * (x[1] + x[2]);
      y[0] = x[0] + middle;
      y[1] = 0.5f * (x[1] - x[2]);
      y[2] = middle + x[3];
    });
    float values[9][kNative];
    for (int k = 0; k < 9; ++k) write(values[k], g[k / 3][k % 3], Whole());
    for (int64_t i = 0; i < count; ++i) {
      float* weight = pass.weight + line * pass.line_stride + (lane + i) * pass.lane_stride;
      for (int k = 0; k < 9; ++k) weight[k] = values[k][i];
    }
  }
}

}  // namespace gwsss_fast::GWSSS_ISA
