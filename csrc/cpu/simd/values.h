// Lines of float or bfloat16 values in native vectors of float, the rest at a line's end included.
#pragma once

#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

using Floats = Vector<kNative>;

struct Whole {};  // stands for kNative lanes where a number of lanes stands for the rest of a line

// Lane by lane, without what `value ? value : other` would need a vector type for.
inline Floats splat(float value) { return Floats{} + value; }

inline Floats read(const float* from, Whole) { return load<kNative>(from); }

inline Floats read(const BFloat16* from, Whole) {
  typedef uint16_t Short __attribute__((vector_size(2 * kNative)));
  typedef uint32_t Word __attribute__((vector_size(4 * kNative)));
  Short bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Word) << 16);
}

inline void write(float* to, Floats values, Whole) { store(to, values); }

// Rounded to the nearest, ties to even; NaN stays NaN.
inline void write(BFloat16* to, Floats values, Whole) {
  typedef uint16_t Short __attribute__((vector_size(2 * kNative)));
  typedef uint32_t Word __attribute__((vector_size(4 * kNative)));
  const Word bits = reinterpret_cast<Word>(values);
  Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = values == values ? rounded : Word{} + 0x7fc0;
  const Short result = __builtin_convertvector(rounded, Short);
  std::memcpy(to, &result, sizeof result);
}

template <class T>
inline Floats read(const T* from, int64_t count) {
  T values[kNative] = {};
  std::memcpy(values, from, count * sizeof(T));
  return read(values, Whole());
}

template <class T>
inline void write(T* to, Floats values, int64_t count) {
  T rounded[kNative];
  write(rounded, values, Whole());
  std::memcpy(to, rounded, count * sizeof(T));
}

// Calls f(first value, lanes) along a line.
template <class F>
inline void for_lanes(int64_t size, F&& f) {
  int64_t at = 0;
  for (; at + kNative <= size; at += kNative) f(at, Whole());
  if (at < size) f(at, size - at);
}

// Calls f with a null pointer of the values' type.
template <class F>
inline void for_type(bool is_bfloat16, F&& f) {
  if (is_bfloat16)
    f(static_cast<BFloat16*>(nullptr));
  else
    f(static_cast<float*>(nullptr));
}

template <class T>
inline T* line(const Rows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

// As exp_of, and NaN of NaN.
inline Floats exponential(Floats x) {
  const Floats y = exp_of<kNative>(x);
  return x == x ? y : x;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

// Relative error 2e-7: an odd polynomial (of Cephes' tanhf) near zero, where the quotient would cancel.
inline Floats tanh_of(Floats x) {
  const Floats size = x < 0.0f ? -x : x, square = x * x;
  Floats p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Floats near = x + x * square * p;
  const Floats quotient = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
  return size < 0.625f ? near : (x < 0.0f ? -quotient : quotient);
}

}  // namespace
}  // namespace gwsss_fast::GWSSS_ISA
