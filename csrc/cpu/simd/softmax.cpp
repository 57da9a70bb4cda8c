// Softmaxes over the rows of a block of scores, their gradients, and sums of rows of either type.

#include <cmath>
#include <limits>

#include "table.h"
#include "values.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr int kLanes = kNative;
using Lanes = Vector<kLanes>;
using Bits = Integers<kLanes>;

// The first `count` values, `fill` in the other lanes.
template <class T>
inline Lanes read_some(const T* from, int64_t count, float fill) {
  Lanes v = Lanes{} + fill;
  T values[kLanes];
  write(values, v, Whole());
  std::memcpy(values, from, count * sizeof(T));
  return read(values, Whole());
}

// Calls f(place, in, out) for every vector of [0, count): in(from) reads one, out(to, v) writes one. Lanes beyond the
// end are not written and read as zero, or as what in(from, fill) is told.
template <class F>
inline void for_vectors(int64_t count, F&& f) {
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes)
    f(at, [](const auto* from, float = 0) { return read(from, Whole()); },
      [](auto* to, Lanes v) { write(to, v, Whole()); });
  if (const int64_t rest = count - at; rest > 0)
    f(at, [=](const auto* from, float fill = 0) { return read_some(from, rest, fill); },
      [=](auto* to, Lanes v) { write(to, v, rest); });
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class T>
float softmax_row(float* scores, int64_t columns, T* weights) {
  Lanes most = Lanes{} - kInfinity;
  Bits nan = {};
  for_vectors(columns, [&](int64_t at, auto in, auto) {
    const Lanes x = in(scores + at, -kInfinity);
    most = larger<kLanes>(most, x);
    nan |= x != x;
  });
  const float maximum = max_of<kLanes>(most);
  Lanes total = {};
  for_vectors(columns, [&](int64_t at, auto in, auto out) {
    const Lanes e = exp_of<kLanes>(in(scores + at, -kInfinity) - maximum);
    total += e;
    out(scores + at, e);
  });
  const float sum = sum_of<kLanes>(total);
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= nan[i];
  const float scale = any != 0 ? kNan : 1.0f / sum;  // infinite for a row without a finite score: 0 * inf is NaN
  for_vectors(columns, [&](int64_t at, auto in, auto out) { out(weights + at, in(scores + at) * scale); });
  return any != 0 ? kNan : maximum + std::log(sum);
}

// The weights are divided by their sum: lse alone, rounded where scores are large, leaves it off one, and a gradient
// that should vanish does not.
template <class T>
void softmax_gradient_row(float* scores, const T* slopes, int64_t columns, float lse, T* weights, T* gradient) {
  Lanes total = {}, products = {};
  for_vectors(columns, [&](int64_t at, auto in, auto out) {
    const Lanes p = exp_of<kLanes>(in(scores + at, -kInfinity) - lse);
    out(scores + at, p);
    total += p;
    products += p * in(slopes + at);
  });
  // NaN where the forward pass found no finite sum
  const float scale = 1.0f / sum_of<kLanes>(total) + (lse - lse);
  const float delta = scale * sum_of<kLanes>(products);
  for_vectors(columns, [&](int64_t at, auto in, auto out) {
    const Lanes p = in(scores + at) * scale;
    out(gradient + at, p * (in(slopes + at) - delta));
    out(weights + at, p);
  });
}

template <class T>
void weigh(const SoftmaxRows& rows, int64_t begin, int64_t end) {
  T* weights = static_cast<T*>(rows.weights);
  for (int64_t i = begin; i < end; ++i)
    rows.row_lse[i] = softmax_row(rows.scores + i * rows.columns, rows.columns, weights + i * rows.weight_stride);
}

template <class T>
void weigh_gradient(const SoftmaxGradientRows& rows, int64_t begin, int64_t end) {
  const T* slopes = static_cast<const T*>(rows.slopes);
  T* weights = static_cast<T*>(rows.weights);
  T* gradient = static_cast<T*>(rows.gradient);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = i * rows.columns;
    softmax_gradient_row(rows.scores + at, slopes + at, rows.columns, rows.row_lse[i], weights + at, gradient + at);
  }
}

// out = a + factor * b; a may be null.
template <class A, class B, class Out>
void add(const A* a, float factor, const B* b, Out* out, int64_t count) {
  if (a == nullptr)
    for_vectors(count, [&](int64_t at, auto in, auto put) { put(out + at, factor * in(b + at)); });
  else
    for_vectors(count, [&](int64_t at, auto in, auto put) { put(out + at, in(a + at) + factor * in(b + at)); });
}

}  // namespace

void softmax_rows(const SoftmaxRows& rows, int64_t begin, int64_t end) {
  rows.is_bfloat16 ? weigh<BFloat16>(rows, begin, end) : weigh<float>(rows, begin, end);
}

void softmax_gradient_rows(const SoftmaxGradientRows& rows, int64_t begin, int64_t end) {
  rows.is_bfloat16 ? weigh_gradient<BFloat16>(rows, begin, end) : weigh_gradient<float>(rows, begin, end);
}

void widen(const BFloat16* from, int64_t count, float* to) {
  add<float>(nullptr, 1.0f, from, to, count);
}
void accumulate(const BFloat16* from, int64_t count, float* to) { add(to, 1.0f, from, to, count); }
void sum_float(const float* a, float factor, const float* b, int64_t count, float* to) { add(a, factor, b, to, count); }
void sum_bfloat16(const BFloat16* a, float factor, const BFloat16* b, int64_t count, BFloat16* to) {
  add(a, factor, b, to, count);
}
void narrow_sum(const float* a, const float* b, int64_t count, BFloat16* to) { add(a, 1.0f, b, to, count); }

}  // namespace gwsss_fast::GWSSS_ISA
