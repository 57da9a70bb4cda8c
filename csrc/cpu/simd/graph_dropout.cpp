// Graph dropout: channel means of positions, and the product with the map.

#include "table.h"
#include "values.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr int64_t kAheadBytes = int64_t{1} << 14;  // by which rows are asked for before they are needed

// Asks for what is read so much later, whether or not there is anything. The processor looks ahead by itself, but only
// within a page of memory, and not while it writes other rows.
template <class T>
inline void fetch_ahead(const T* at) {
  __builtin_prefetch(reinterpret_cast<const char*>(at) + kAheadBytes);
}

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

// Calls f(first channel, lanes), which gives the values to be written there. past: beyond the caches.
template <bool past, class T, class F>
inline void write_row(T* out, int64_t channels, F&& f) {
  for_lanes(channels, [&](int64_t at, auto lanes) {
    if constexpr (past && std::is_same_v<decltype(lanes), Whole>)
      write_past(out + at, f(at, lanes));
    else
      write(out + at, f(at, lanes), lanes);
  });
}

template <bool past, class T>
void scale_row(const DropoutPass& pass, int64_t row) {
  const T* g = static_cast<const T*>(pass.g) + row * pass.channels;
  const Floats s = splat(pass.s[row]);
  write_row<past>(static_cast<T*>(pass.out) + row * pass.channels, pass.channels, [&](int64_t at, auto lanes) {
    fetch_ahead(g + at);
    return read(g + at, lanes) * s;
  });
}

// Sum over channels of grad g.
template <bool past, class T>
float product_row(const DropoutPass& pass, int64_t row) {
  const T* g = static_cast<const T*>(pass.g) + row * pass.channels;
  const T* grad = static_cast<const T*>(pass.grad) + row * pass.channels;
  const T* out = static_cast<const T*>(pass.out) + row * pass.channels;
  return sum_over(pass.channels, [&](int64_t at, auto lanes) {
    if constexpr (!past) __builtin_prefetch(out + at, 1);
    return read(grad + at, lanes) * read(g + at, lanes);
  });
}

template <bool past, class T>
void scale_row_backward(const DropoutPass& pass, int64_t row, float product) {
  const T* g = static_cast<const T*>(pass.g) + row * pass.channels;
  const T* grad = static_cast<const T*>(pass.grad) + row * pass.channels;
  const Floats s = splat(pass.s[row]), through_map = splat(product * pass.slope[row] / pass.channels);
  write_row<past>(static_cast<T*>(pass.out) + row * pass.channels, pass.channels, [&](int64_t at, auto lanes) {
    fetch_ahead(g + at);
    fetch_ahead(grad + at);
    return read(grad + at, lanes) * s + through_map;
  });
}

template <bool past, class T>
void scale_rows(const DropoutPass& pass, int64_t begin, int64_t end) {
  if (pass.grad == nullptr) {
    for (int64_t row = begin; row < end; ++row) scale_row<past, T>(pass, row);
    return;
  }
  constexpr int64_t kTogether = 4;  // so that no row waits for the end of its own sum
  for (; begin < end; begin += kTogether) {
    float products[kTogether];
    const int64_t count = end - begin < kTogether ? end - begin : kTogether;
    for (int64_t i = 0; i < count; ++i) products[i] = product_row<past, T>(pass, begin + i);
    for (int64_t i = 0; i < count; ++i) scale_row_backward<past, T>(pass, begin + i, products[i]);
  }
}

// Whether every row begins where a vector may be written past the caches.
template <class T>
bool rows_are_aligned(const DropoutPass& pass) {
  constexpr size_t vector = kNative * sizeof(T);
  return reinterpret_cast<uintptr_t>(pass.out) % vector == 0 && pass.channels * sizeof(T) % vector == 0;
}

}  // namespace

void dropout_means(const DropoutPass& pass, int64_t begin, int64_t end) {
  for_type(pass.is_bfloat16, [&](auto type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t row = begin; row < end; ++row) {
      const T* g = static_cast<const T*>(pass.g) + row * pass.channels;
      const T* out = static_cast<const T*>(pass.out) + row * pass.channels;
      pass.o[row] = sum_over(pass.channels, [&](int64_t at, auto lanes) {
        if (!pass.past_caches) __builtin_prefetch(out + at, 1);
        return read(g + at, lanes);
      });
      pass.o[row] /= pass.channels;
    }
  });
}

void dropout_scale(const DropoutPass& pass, int64_t begin, int64_t end) {
  for_type(pass.is_bfloat16, [&](auto type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (pass.past_caches && rows_are_aligned<T>(pass)) {
      scale_rows<true, T>(pass, begin, end);
      end_of_writes();
    } else {
      scale_rows<false, T>(pass, begin, end);
    }
  });
}

}  // namespace gwsss_fast::GWSSS_ISA
