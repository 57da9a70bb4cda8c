// Rows of labels in vector registers, with exp and log. GCC's and Clang's vector types: each instruction set compiles
// the same code to its own width.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "../kernels.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kNative = 16;
#elif defined(__AVX__)
constexpr int kNative = 8;
#else
constexpr int kNative = 4;
#endif

template <int N>
struct VectorOf {
  typedef float Float __attribute__((vector_size(4 * N)));
  typedef int32_t Int __attribute__((vector_size(4 * N)));
};

template <int N>
using Vector = typename VectorOf<N>::Float;
template <int N>
using Integers = typename VectorOf<N>::Int;

template <int N>
inline Vector<N> load(const float* from) {
  Vector<N> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(float* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// Past the caches, to memory aligned for `v`: a cache would first read what is there.
template <int N>
inline void stream(float* to, Vector<N> v) {
#if defined(__SSE__)
  if constexpr (N > (kNative < 8 ? 4 : 8)) {
    Vector<N / 2> half[2];
    std::memcpy(half, &v, sizeof v);
    stream<N / 2>(to, half[0]);
    stream<N / 2>(to + N / 2, half[1]);
  } else {
#if defined(__AVX__)
    _mm256_stream_ps(to, reinterpret_cast<__m256>(v));
#else
    _mm_stream_ps(to, reinterpret_cast<__m128>(v));
#endif
  }
#else
  store(to, v);
#endif
}

// Makes what was streamed visible to other threads.
inline void end_stream() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

template <int N>
inline Integers<N> bits_of(Vector<N> v) {
  return reinterpret_cast<Integers<N>>(v);
}

template <int N>
inline Vector<N> floats_of(Integers<N> v) {
  return reinterpret_cast<Vector<N>>(v);
}

template <int N>
inline Vector<N> larger(Vector<N> a, Vector<N> b) {
  return a > b ? a : b;
}

// Maximum and sum over lanes.
template <int N>
inline float max_of(Vector<N> v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    Vector<N / 2> half[2];
    std::memcpy(half, &v, sizeof v);
    return max_of<N / 2>(larger<N / 2>(half[0], half[1]));
  }
}

template <int N>
inline float sum_of(Vector<N> v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    Vector<N / 2> half[2];
    std::memcpy(half, &v, sizeof v);
    return sum_of<N / 2>(half[0] + half[1]);
  }
}

// e^x, zero under -80 and e^80 over 80; relative error 2e-7 (polynomial of Cephes' expf).
template <int N>
inline Vector<N> exp_of(Vector<N> x) {
  const Vector<N> shift = Vector<N>{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Integers<N> keep = x > -80.0f;
  x = larger<N>(x, Vector<N>{} - 80.0f);
  x = x > 80.0f ? Vector<N>{} + 80.0f : x;
  const Vector<N> shifted = x * 1.44269504f + shift, n = shifted - shift;
  const Vector<N> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<N> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers<N> power = bits_of<N>(shifted) << 23;  // the low bits of `shifted` hold n
  return floats_of<N>((bits_of<N>(p) + power) & keep);
}

// Natural logarithm of normal positive x, relative error 2e-7 away from 1 (polynomial of Cephes' logf).
template <int N>
inline Vector<N> log_of(Vector<N> x) {
  const Integers<N> bits = bits_of<N>(x);
  Integers<N> exponent = ((bits >> 23) & 0xff) - 126;
  Vector<N> m = floats_of<N>((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
  const Integers<N> low = m < 0.707106781f;
  exponent += low;  // true is -1
  m = m + floats_of<N>(bits_of<N>(m) & low) - 1.0f;
  const Vector<N> e = __builtin_convertvector(exponent, Vector<N>), z = m * m;
  Vector<N> p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * z - e * 2.12194440e-4f - z * 0.5f;
  return m + p + e * 0.693359375f;
}

// W values, a multiple of 8, in registers: native vectors and, with 16 lanes, perhaps a half one.
template <int W>
struct Row {
  static constexpr int whole = W / kNative;
  static constexpr bool rest = W % kNative != 0;
  Vector<kNative> part[whole > 0 ? whole : 1];
  Vector<8> last;

  template <class F>
  inline void each(F&& f) {
    if constexpr (whole > 0)
#pragma GCC unroll 16
      for (int i = 0; i < whole; ++i) f(part[i], std::integral_constant<int, kNative>(), i * kNative);
    if constexpr (rest) f(last, std::integral_constant<int, 8>(), whole * kNative);
  }

  static inline Row zero() {
    Row row;
    row.each([](auto& v, auto lanes, int) { v = Vector<lanes>{}; });
    return row;
  }

  static inline Row read(const float* from) {
    Row row;
    row.each([from](auto& v, auto lanes, int at) { v = load<lanes>(from + at); });
    return row;
  }

  inline void write(float* to) {
    each([to](auto& v, auto, int at) { store(to + at, v); });
  }

  inline void stream_to(float* to) {
    each([to](auto& v, auto lanes, int at) { stream<lanes>(to + at, v); });
  }

  // *this = 0 unless all bits are set
  inline void keep(int32_t bits) {
    each([=](auto& v, auto lanes, int) { v = floats_of<lanes>(bits_of<lanes>(v) & bits); });
  }

  // *this += factor * row at `from`
  inline void add(float factor, const float* from) {
    each([=](auto& v, auto lanes, int at) { v += factor * load<lanes>(from + at); });
  }

  // *this + (before + after) / 2
  inline Row blurred(const Row& before, const Row& after) const {
    Row row;
    if constexpr (whole > 0)
#pragma GCC unroll 16
      for (int i = 0; i < whole; ++i) row.part[i] = part[i] + 0.5f * (before.part[i] + after.part[i]);
    if constexpr (rest) row.last = last + 0.5f * (before.last + after.last);
    return row;
  }
};

// Asks for a row that will soon be read.
template <int W>
inline void prefetch(const float* row) {
  __builtin_prefetch(row);
  if (W > 8) __builtin_prefetch(row + W - 1);
}

// Calls f(integral_constant width).
template <class F>
inline void for_width(int64_t width, F&& f) {
  switch (width) {
    case 8: return f(std::integral_constant<int, 8>());
    case 16: return f(std::integral_constant<int, 16>());
    case 24: return f(std::integral_constant<int, 24>());
    default: return f(std::integral_constant<int, kPlane>());
  }
}

// Calls f(integral_constant width, first label) for every plane.
template <class F>
inline void for_planes(int64_t pitch, F&& f) {
  for (int64_t plane = 0; plane < planes(pitch); ++plane)
    for_width(plane_width(pitch, plane), [&](auto width) { f(width, plane * kPlane); });
}

}  // namespace
}  // namespace gwsss_fast::GWSSS_ISA
