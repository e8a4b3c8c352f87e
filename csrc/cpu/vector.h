// What the loops share: conversions of whole rows, and sums whose order depends on nothing but the length.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "loops.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace pxp::cpu {

// As many elements as are worked on between two looks at what to do next: their relevance stays in the first-level
// cache.
constexpr int64_t kChunk = 1024;

// A loop whose iterations are independent though its pointers may be equal: what `__restrict` says of the others, but
// true in place.
#ifdef __clang__
#define PXP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define PXP_INDEPENDENT _Pragma("GCC ivdep")
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

PXP_FORMULA float widen(float x) { return x; }
PXP_FORMULA double widen(double x) { return x; }
PXP_FORMULA float widen(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }

template <class T, class C>
PXP_FORMULA T narrow(C x) {
  if constexpr (sizeof(T) == 2) {
    // To nearest, ties to even; NaN stays NaN. Half goes through `narrow_row`.
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return T{uint16_t(x != x ? 0x7fc0u : rounded)};
  } else {
    return x;
  }
}

static inline float widen_half(uint16_t half) {
  // The exponent is moved to float's by a multiplication, which also makes subnormals right.
  const uint32_t magnitude = uint32_t(half & 0x7fffu) << 13;
  const float scaled = float_of(magnitude) * float_of(0x77800000u);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t bits = magnitude >= 0x0f800000u ? special : bits_of(scaled);
  return float_of(bits | uint32_t(half & 0x8000u) << 16);
}

static inline uint16_t narrow_half(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: adding 0.5 leaves the rounded bits at the bottom
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

static inline void widen_row(const Half* from, float* to, int64_t n) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
#endif
  for (; i < n; ++i) to[i] = widen_half(from[i].bits);
}
static inline void narrow_row(const float* from, Half* to, int64_t n) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) to[i].bits = narrow_half(from[i]);
}
template <class T>
static inline void widen_row(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}
template <class T>
static inline void narrow_row(const float* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<T>(from[i]);
}

// Rows that are summed may be read this many elements past their end, so that the rest of a row needs no loop of its
// own.
constexpr int64_t kPadding = 16;

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

// Adds the two halves of `bytes` bytes, again and again.
template <class C, int bytes>
PXP_FORMULA C fold(const C* values) {
  if constexpr (bytes == sizeof(C)) {
    return *values;
  } else {
    constexpr int half = bytes / 2;
    typedef C Half __attribute__((vector_size(half)));
    Half low, high;
    memcpy(&low, values, half);
    memcpy(&high, values + half / sizeof(C), half);
    low += high;
    C sum[half / sizeof(C)];
    memcpy(sum, &low, half);
    return fold<C, half>(sum);
  }
}

// The sum of n values, and of their absolute values where asked for. Lane i of 128 bytes of partial sums takes every
// value whose index is i modulo the number of lanes, so every instruction set adds in one order.
template <bool kAbsolute, class C>
static inline void sum_row(const C* values, int64_t n, C* sum, C* absolute) {
  using Bits = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  typedef C Vector __attribute__((vector_size(kRegister)));
  typedef Bits Mask __attribute__((vector_size(kRegister)));
  constexpr int64_t width = kRegister / sizeof(C);
  constexpr int parts = 128 / kRegister;
  constexpr Bits no_sign = ~Bits(0) >> 1;
  // `ones + width - k` has k ones, then zeros.
  static constexpr Bits ones[32] = {
#define PXP_ONES ~Bits(0), ~Bits(0), ~Bits(0), ~Bits(0), ~Bits(0), ~Bits(0), ~Bits(0), ~Bits(0)
      PXP_ONES, PXP_ONES};
#undef PXP_ONES
  const Bits* end_of_ones = ones + 16;

  Vector signed_lanes[parts] = {}, absolute_lanes[parts] = {};
  const auto add = [&](int part, Mask bits) {  // a cast between vectors keeps the bits
    signed_lanes[part] += (Vector)bits;
    if constexpr (kAbsolute) {
      bits &= Mask{} + no_sign;
      absolute_lanes[part] += (Vector)bits;
    }
  };
  int64_t i = 0;
  for (; i + parts * width <= n; i += parts * width) {
    for (int part = 0; part < parts; ++part) {
      Mask bits;
      memcpy(&bits, values + i + part * width, sizeof bits);
      add(part, bits);
    }
  }
  for (int part = 0; part < parts; ++part) {  // of fixed length, so that `part` is a register and not an address
    const int64_t left = n - i - part * width;
    if (left <= 0) break;
    Mask bits, mask;
    memcpy(&bits, values + i + part * width, sizeof bits);
    memcpy(&mask, end_of_ones - (left < width ? left : width), sizeof mask);
    add(part, bits & mask);
  }
  for (int half = parts / 2; half > 0; half /= 2) {
    for (int part = 0; part < half; ++part) {
      signed_lanes[part] += signed_lanes[part + half];
      if constexpr (kAbsolute) absolute_lanes[part] += absolute_lanes[part + half];
    }
  }
  C lanes[width];
  memcpy(lanes, signed_lanes, sizeof lanes);
  *sum = fold<C, kRegister>(lanes);
  if constexpr (kAbsolute) {
    memcpy(lanes, absolute_lanes, sizeof lanes);
    *absolute = fold<C, kRegister>(lanes);
  }
}

}  // namespace pxp::cpu
