// What the loops share: conversions of whole rows, and sums whose order depends on nothing but the length.
#pragma once

#include <cstdint>
#include <cstring>

#include "loops.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace pxp::cpu {

// As many elements as are worked on between two looks at what to do next: their relevance stays in the first-level cache.
constexpr int64_t kChunk = 1024;

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

// Sixty-four bytes of partial sums, whatever registers the processor has: every instruction set adds in one order.
template <class C>
struct Lanes {
  static constexpr int64_t count = 64 / sizeof(C);
  typedef C Vector __attribute__((vector_size(64)));
};

template <class C>
static inline C sum_lanes(const C* lanes) {
  C level[Lanes<C>::count];
  memcpy(level, lanes, sizeof level);
  for (int64_t half = Lanes<C>::count / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) level[i] += level[i + half];
  }
  return level[0];
}

// The sum of n values and of their absolute values (`absolute` may be null).
template <class C>
static inline void sum_row(const C* values, int64_t n, C* sum, C* absolute) {
  using Vector = typename Lanes<C>::Vector;
  constexpr int64_t count = Lanes<C>::count;
  Vector signed_lanes = {}, absolute_lanes = {};
  int64_t i = 0;
  for (; i + count <= n; i += count) {
    Vector value, magnitude;
    memcpy(&value, values + i, sizeof value);
    signed_lanes += value;
    C magnitudes[count];
    for (int64_t k = 0; k < count; ++k) magnitudes[k] = values[i + k] < 0 ? -values[i + k] : values[i + k];
    memcpy(&magnitude, magnitudes, sizeof magnitude);
    absolute_lanes += magnitude;
  }
  C rest = 0, absolute_rest = 0;
  for (; i < n; ++i) {
    rest += values[i];
    absolute_rest += values[i] < 0 ? -values[i] : values[i];
  }
  *sum = sum_lanes(reinterpret_cast<const C*>(&signed_lanes)) + rest;
  if (absolute) *absolute = sum_lanes(reinterpret_cast<const C*>(&absolute_lanes)) + absolute_rest;
}

}  // namespace pxp::cpu
