// The loops of `layer_norm`, compiled once per instruction set (PXP_ISA names it).
#include <memory>

#include "vector.h"

namespace pxp::cpu::PXP_ISA {
namespace {

template <class C, bool kWeighted>
void scale(const C* __restrict carry, const C* __restrict output, const C* __restrict weight, C* __restrict scaled,
           int64_t n, C rstd, C eps) {
  for (int64_t i = 0; i < n; ++i) {
    const C value = carry[i] * stabilizing_factor(output[i], eps) * rstd;
    scaled[i] = kWeighted ? value * weight[i] : value;
  }
}

template <class C>
void centre(const C* __restrict scaled, const C* residual, C* result, int64_t n, C mean) {
  if (residual) {
    for (int64_t i = 0; i < n; ++i) result[i] = (scaled[i] - mean) + residual[i];
  } else {
    for (int64_t i = 0; i < n; ++i) result[i] = scaled[i] - mean;
  }
}

template <class C>
C mean_of(const C* values, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += kChunk) {
    C part;
    sum_row<false, C>(values + i, n - i < kChunk ? n - i : kChunk, &part, nullptr);
    total += part;
  }
  return C(total / double(n));
}

template <class C>
void one_row(const LayerNormTask& task, int64_t row, const C* carry, const C* output, const C* residual, C* scaled,
             C* result) {
  const int64_t n = task.columns;
  const C rstd = static_cast<const C*>(task.rstd)[row];
  const C* weight = static_cast<const C*>(task.weight);
  (weight ? scale<C, true> : scale<C, false>)(carry, output, weight, scaled, n, rstd, C(task.eps));
  centre(scaled, residual, result, n, mean_of(scaled, n));
}

template <class T, class C>
void rows(const LayerNormTask& task, int64_t begin, int64_t end) {
  const int64_t n = task.columns;
  const bool wide = std::is_same_v<T, C>;
  const std::unique_ptr<C[]> buffer(new C[(wide ? n : 4 * n) + kPadding]);
  const T* carry = static_cast<const T*>(task.carry);
  const T* output = static_cast<const T*>(task.output);
  const T* residual = static_cast<const T*>(task.residual);
  T* result = static_cast<T*>(task.result);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * n;
    if constexpr (std::is_same_v<T, C>) {
      one_row<C>(task, row, carry + at, output + at, residual ? residual + at : nullptr, buffer.get(), result + at);
    } else {
      C* wide_carry = buffer.get() + n;
      C* wide_output = wide_carry + n;
      C* wide_residual = wide_output + n;
      widen_row(carry + at, wide_carry, n);
      widen_row(output + at, wide_output, n);
      if (residual) widen_row(residual + at, wide_residual, n);
      one_row<C>(task, row, wide_carry, wide_output, residual ? wide_residual : nullptr, buffer.get(), wide_carry);
      narrow_row(wide_carry, result + at, n);
    }
  }
}

}  // namespace

void layer_norm(const LayerNormTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return rows<double, double>(task, begin, end);
    case Type::float32: return rows<float, float>(task, begin, end);
    case Type::bfloat16: return rows<BFloat16, float>(task, begin, end);
    case Type::float16: return rows<Half, float>(task, begin, end);
  }
}

}  // namespace pxp::cpu::PXP_ISA
