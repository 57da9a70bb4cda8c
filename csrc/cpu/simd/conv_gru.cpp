// What lies between the products of a ConvGRU: gates, blends and their gradients, each tensor read or written once.

#include "table.h"
#include "values.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

// Calls f(row, first channel, lanes, null pointer of the type) for all values of some rows.
template <class F>
inline void for_values(const GruShape& shape, int64_t begin, int64_t end, F&& f) {
  for_type(shape.is_bfloat16, [&](auto type) {
    for (int64_t row = begin; row < end; ++row)
      for_lanes(shape.channels, [&](int64_t at, auto lanes) { f(row, at, lanes, type); });
  });
}

// One vector of the lines that f works on.
template <class Type, class Lanes>
struct At {
  using T = std::remove_pointer_t<Type>;
  int64_t row, at;
  Lanes lanes;

  inline Floats get(const Rows& rows) const { return read(line<T>(rows, row) + at, lanes); }
  inline Floats get(const Rows& rows, int64_t column) const { return read(line<T>(rows, row) + column + at, lanes); }
  inline void put(const Rows& rows, Floats values) const { write(line<T>(rows, row) + at, values, lanes); }
};

// Calls f(At) for all values of some rows.
template <class F>
inline void everywhere(const GruShape& shape, int64_t begin, int64_t end, F&& f) {
  for_values(shape, begin, end, [&](int64_t row, int64_t at, auto lanes, auto type) {
    f(At<decltype(type), decltype(lanes)>{row, at, lanes});
  });
}

}  // namespace

void gru_gates(const GruGates& pass, int64_t begin, int64_t end) {
  everywhere(pass.shape, begin, end, [&](auto x) {
    const Floats r = sigmoid(x.get(pass.opened, pass.shape.channels));
    x.put(pass.z, sigmoid(x.get(pass.opened)));
    x.put(pass.r, r);
    x.put(pass.reset, r * x.get(pass.h));
  });
}

void gru_blend(const GruBlend& pass, int64_t begin, int64_t end) {
  everywhere(pass.shape, begin, end, [&](auto x) {
    const Floats c = tanh_of(x.get(pass.c)), z = x.get(pass.z);
    x.put(pass.c, c);
    x.put(pass.out, (1.0f - z) * x.get(pass.h) + z * c);
  });
}

void gru_slopes(const GruSlopes& pass, int64_t begin, int64_t end) {
  everywhere(pass.shape, begin, end, [&](auto x) {
    const Floats z = x.get(pass.z), c = x.get(pass.c), opened = x.get(pass.grad) * z;
    x.put(pass.slope_c, opened * (1.0f - c * c));
    x.put(pass.slope_z, opened * (1.0f - z) * (c - x.get(pass.h)));
  });
}

void gru_reset(const GruReset& pass, int64_t begin, int64_t end) {
  everywhere(pass.shape, begin, end, [&](auto x) {
    const Floats reset = x.get(pass.r) * x.get(pass.h);
    x.put(pass.reset, reset);
    x.put(pass.slope_r, x.get(pass.grad_reset) * reset * (1.0f - x.get(pass.r)));
  });
}

void gru_join(const GruJoin& pass, int64_t begin, int64_t end) {
  const int64_t state = pass.shape.channels;
  everywhere(pass.shape, begin, end, [&](auto x) {
    x.put(pass.grad_m, x.get(pass.back) + x.get(pass.from_gates));
    const Floats kept = x.get(pass.grad) * (1.0f - x.get(pass.z)) + x.get(pass.back, state) * x.get(pass.r);
    x.put(pass.grad_h, kept + x.get(pass.from_gates, state));
  });
}

}  // namespace gwsss_fast::GWSSS_ISA
