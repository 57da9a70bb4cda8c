// Graph dropout: channel means of positions, and the product with the map.

#include "table.h"
#include "values.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

// Sum over channels of f(first channel, lanes), in four chains of additions.
template <class F>
inline float sum_over(int64_t channels, F&& f) {
  Floats sum[4] = {};
  int64_t at = 0;
  for (; at + 4 * kNative <= channels; at += 4 * kNative)
    for (int i = 0; i < 4; ++i) sum[i] += f(at + i * kNative, Whole());
  for (; at + kNative <= channels; at += kNative) sum[0] += f(at, Whole());
  if (at < channels) sum[1] += f(at, channels - at);
  return sum_of<kNative>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
void scale_row(const DropoutPass& pass, int64_t row) {
  const T* g = static_cast<const T*>(pass.g) + row * pass.channels;
  T* out = static_cast<T*>(pass.out) + row * pass.channels;
  const Floats s = splat(pass.s[row]);
  for_lanes(pass.channels, [&](int64_t at, auto lanes) { write(out + at, read(g + at, lanes) * s, lanes); });
}

template <class T>
void scale_row_backward(const DropoutPass& pass, int64_t row) {
  const T* g = static_cast<const T*>(pass.g) + row * pass.channels;
  const T* grad = static_cast<const T*>(pass.grad) + row * pass.channels;
  T* out = static_cast<T*>(pass.out) + row * pass.channels;
  const float product =
      sum_over(pass.channels, [&](int64_t at, auto lanes) { return read(grad + at, lanes) * read(g + at, lanes); });
  const Floats s = splat(pass.s[row]), through_map = splat(product * pass.slope[row] / pass.channels);
  for_lanes(pass.channels, [&](int64_t at, auto lanes) {
    write(out + at, read(grad + at, lanes) * s + through_map, lanes);
  });
}

}  // namespace

void dropout_means(const DropoutPass& pass, int64_t begin, int64_t end) {
  for_type(pass.is_bfloat16, [&](auto type) {
    const auto* g = static_cast<decltype(type)>(const_cast<void*>(pass.g));
    for (int64_t row = begin; row < end; ++row) {
      const auto* values = g + row * pass.channels;
      pass.o[row] = sum_over(pass.channels, [&](int64_t at, auto lanes) { return read(values + at, lanes); });
      pass.o[row] /= pass.channels;
    }
  });
}

void dropout_scale(const DropoutPass& pass, int64_t begin, int64_t end) {
  for_type(pass.is_bfloat16, [&](auto type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t row = begin; row < end; ++row)
      pass.grad == nullptr ? scale_row<T>(pass, row) : scale_row_backward<T>(pass, row);
  });
}

}  // namespace gwsss_fast::GWSSS_ISA
