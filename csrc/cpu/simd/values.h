// Lines of float or bfloat16 values in native vectors of float, the rest at a line's end included.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

using Floats = Vector<kNative>;

struct Whole {};  // stands for kNative lanes where a number of lanes stands for the rest of a line

// Lane by lane, without what `value ? value : other` would need a vector type for.
inline Floats splat(float value) { return Floats{} + value; }

inline Floats read(const float* from, Whole) { return load<kNative>(from); }

typedef uint16_t Shorts __attribute__((vector_size(2 * kNative)));
typedef uint32_t Words __attribute__((vector_size(4 * kNative)));

inline Floats read(const BFloat16* from, Whole) {
#if defined(__AVX512F__)  // GCC's own conversion goes by halves
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, bits)) << 16);
#else
  Shorts bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
#endif
}

inline void write(float* to, Floats values, Whole) { store(to, values); }

// Rounded to the nearest, ties to even; NaN stays NaN.
inline Shorts rounded(Floats values) {
  const Words bits = reinterpret_cast<Words>(values);
  Words words = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  words = values == values ? words : Words{} + 0x7fc0;
  return __builtin_convertvector(words, Shorts);
}

inline void write(BFloat16* to, Floats values, Whole) {
  const Shorts result = rounded(values);
  std::memcpy(to, &result, sizeof result);
}

// As `write`, to memory aligned to a vector and past the caches where the processor can: what is written is not read
// into them first. Other threads see it after `end_of_writes`.
inline void write_past(float* to, Floats values) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, reinterpret_cast<__m512>(values));
#elif defined(__AVX__)
  _mm256_stream_ps(to, reinterpret_cast<__m256>(values));
#elif defined(__SSE2__)
  _mm_stream_ps(to, reinterpret_cast<__m128>(values));
#else
  write(to, values, Whole());
#endif
}

inline void write_past(BFloat16* to, Floats values) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(rounded(values)));
#elif defined(__AVX__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(rounded(values)));
#else
  write(to, values, Whole());
#endif
}

inline void end_of_writes() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class T>
inline Floats read(const T* from, int64_t count) {
  T values[kNative] = {};
  std::memcpy(values, from, count * sizeof(T));
  return read(values, Whole());
}

template <class T>
inline void write(T* to, Floats values, int64_t count) {
  T whole[kNative];
  write(whole, values, Whole());
  std::memcpy(to, whole, count * sizeof(T));
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
