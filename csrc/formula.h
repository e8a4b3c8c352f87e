// The scalar formulas, written once: the CPU loops vectorise them, the CUDA kernels and their host simulator run them
// per thread. No library but <cmath> and <cstring> is included, so that any of the three can.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PXP_FORMULA __host__ __device__ __forceinline__
#define PXP_METHOD __host__ __device__ __forceinline__
#else
// Internal linkage: the same formula is compiled for several instruction sets, and the linker must not merge them.
#define PXP_FORMULA static inline __attribute__((always_inline))
#define PXP_METHOD inline __attribute__((always_inline))
#endif

namespace pxp {

enum class Activation : int { identity, relu, relu6, gelu, gelu_tanh, silu, hardswish };
constexpr int kActivations = 7;

PXP_FORMULA uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
PXP_FORMULA float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Written as functions that compilers know: from a choice by sign they would make two paths through all that follows.
PXP_FORMULA float magnitude_of(float x) { return fabsf(x); }
PXP_FORMULA double magnitude_of(double x) { return fabs(x); }

// max(x, 0). NaN stays NaN.
template <class T>
PXP_FORMULA T rectified(T x) {
  return x < T(0) ? T(0) : x;
}

// exp(x) within 2 ulp for |x| <= 87, the value at -87 or 87 beyond. Branch-free, so that a loop over it vectorises; the
// magnitude is bounded as an integer, because a choice between floats would become two paths. NaN counts as beyond: all
// callers multiply by z again, which brings it back.
PXP_FORMULA float exponential(float x) {
  const uint32_t sign = bits_of(x) & 0x80000000u, magnitude = bits_of(x) & 0x7fffffffu, limit = bits_of(87.0f);
  x = float_of(sign | (magnitude < limit ? magnitude : limit));
  // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  // ln 2 in two parts, the first short enough that n times it is exact.
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // Minimax on [-ln 2 / 2, ln 2 / 2] of (exp(r) - 1 - r) / r^2, relative to exp(r).
  float q = 0.00138144f;
  q = q * r + 0.0083688f;
  q = q * r + 0.0416684f;
  q = q * r + 0.1666652f;
  q = q * r + 0.49999993f;
  const float e = (q * r) * r + r + 1.0f;
  return float_of(bits_of(e) + (bits_of(shifted) << 23));
}
PXP_FORMULA double exponential(double x) { return exp(x); }

PXP_FORMULA float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }
PXP_FORMULA double logistic(double x) { return 1.0 / (1.0 + exp(-x)); }

// The distribution function of the standard normal, Phi(z) = erfc(-z / sqrt 2) / 2, to a few ulp on both sides of zero
// (half of 1 + erf loses all its digits for negative z). The tail is exp(-z^2 / 2) G(|z|), and G(|z|) / t a polynomial
// in t = 4 / (4 + |z|), minimax for |z| <= 14.5.
PXP_FORMULA float normal_cdf(float z) {
  const float far = magnitude_of(z);
  const float magnitude = far > 14.5f ? 14.5f : far;
  const float t = 4.0f / (4.0f + magnitude);
  float g = 0.016892396f;
  g = g * t + -0.06453712f;
  g = g * t + 0.05587936f;
  g = g * t + 0.022611056f;
  g = g * t + 0.017734585f;
  g = g * t + 0.0838513f;
  g = g * t + 0.073012784f;
  g = g * t + 0.09528787f;
  g = g * t + 0.09952146f;
  g = g * t + 0.09974633f;
  // z^2 in two parts: rounding it once would cost z^2 / 2 ulp. Dropping 12 bits of z makes `high` squared exact; the
  // exponential of the rest, which is small, is the start of its series.
  const float high = float_of(bits_of(magnitude) & 0xfffff000u);
  const float rest = -0.5f * ((magnitude - high) * (magnitude + high));
  const float correction = 1.0f + rest * (1.0f + rest * (0.5f + rest * 0.16666667f));
  const float tail = exponential(-0.5f * high * high) * correction * (g * t);
  return z < 0.0f ? tail : 1.0f - tail;
}
PXP_FORMULA double normal_cdf(double z) { return 0.5 * erfc(z * -0.70710678118654752440); }

// act(z) / z, continued to its limit at zero.
template <Activation A, class T>
PXP_FORMULA T ratio(T z) {
  if constexpr (A == Activation::relu) {
    return z > T(0) ? T(1) : T(0);
  } else if constexpr (A == Activation::relu6) {
    const T saturated = T(6) / z;
    const T passed = z > T(0) ? T(1) : T(0);
    return z > T(6) ? saturated : passed;
  } else if constexpr (A == Activation::gelu) {
    return normal_cdf(z);
  } else if constexpr (A == Activation::gelu_tanh) {
    // (1 + tanh u) / 2 = logistic(2 u), with u = sqrt(2 / pi) (z + 0.044715 z^3)
    return logistic(T(1.59576912160573071176) * (z + T(0.044715) * z * z * z));
  } else if constexpr (A == Activation::silu) {
    return logistic(z);
  } else if constexpr (A == Activation::hardswish) {
    T x = z + T(3);
    x = x < T(0) ? T(0) : x;
    x = x > T(6) ? T(6) : x;
    return x / T(6);
  } else {
    return T(1);
  }
}

// f(z) = |z| / (|z| + eps), with f(0) = 0 also for eps = 0.
template <class T>
PXP_FORMULA T stabilizing_factor(T z, T eps) {
  const T magnitude = magnitude_of(z);
  const T quotient = magnitude / (magnitude + eps);
  return magnitude == T(0) ? T(0) : quotient;
}

// How `share_` divides relevance; see pxp_fast/ops/share.py.
enum class Form : int { plain, positive, gamma, both, both_signed };
constexpr int kForms = 5;

// R / (max(D, 0) + eps), 0 where D <= 0: nothing contributed there.
template <class T>
PXP_FORMULA T quotient(T relevance, T denominator, T eps) {
  const T bounded = denominator < T(0) ? T(0) : denominator;
  const T result = relevance / (bounded + eps);
  return bounded == T(0) ? T(0) : result;
}

// Unsigned keys in the order of the scores: -0.0 with 0.0, NaN above everything.
PXP_FORMULA uint32_t order_key(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0xffffffffu;
  if (x == 0.0f) return 0x80000000u;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
PXP_FORMULA uint64_t order_key(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint64_t sign = uint64_t(1) << 63;
  if (x != x) return ~uint64_t(0);
  if (x == 0.0) return sign;
  return bits & sign ? ~bits : bits | sign;
}

}  // namespace pxp
