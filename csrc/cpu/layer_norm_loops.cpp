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

// `result` may be `residual`.
template <class C, bool kResidual, bool kJoin>
void centre(const C* scaled, const C* residual, const C* join, C* result, int64_t n, C mean, C eps) {
  PXP_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    C value = scaled[i] - mean;
    if constexpr (kResidual) value += residual[i];
    if constexpr (kJoin) value *= stabilizing_factor(join[i], eps);
    result[i] = value;
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
void one_row(const LayerNormTask& task, int64_t row, const C* carry, const C* output, const C* residual, const C* join,
             C* scaled, C* result) {
  const int64_t n = task.columns;
  const C rstd = static_cast<const C*>(task.rstd)[row], eps = C(task.eps);
  const C* weight = static_cast<const C*>(task.weight);
  (weight ? scale<C, true> : scale<C, false>)(carry, output, weight, scaled, n, rstd, eps);
  const auto finish = residual ? (join ? centre<C, true, true> : centre<C, true, false>)
                               : (join ? centre<C, false, true> : centre<C, false, false>);
  finish(scaled, residual, join, result, n, mean_of(scaled, n), eps);
}

// A row of T as C: itself, or widened to `wide`; null stays null.
template <class T, class C>
const C* row_of(const void* tensor, int64_t row, int64_t n, C* wide) {
  if (!tensor) return nullptr;
  const T* from = static_cast<const T*>(tensor) + row * n;
  if constexpr (std::is_same_v<T, C>) {
    return from;
  } else {
    widen_row(from, wide, n);
    return wide;
  }
}

template <class T, class C>
void rows(const LayerNormTask& task, int64_t begin, int64_t end) {
  const int64_t n = task.columns;
  constexpr bool wide = std::is_same_v<T, C>;
  const std::unique_ptr<C[]> buffer(new C[(wide ? n : 5 * n) + kPadding]);
  C* const scaled = buffer.get();
  const auto room = [&](int64_t i) { return scaled + (wide ? 0 : i * n); };
  for (int64_t row = begin; row < end; ++row) {
    const C* carry = row_of<T, C>(task.carry, row, n, room(1));
    const C* output = row_of<T, C>(task.output, row, n, room(2));
    const C* residual = row_of<T, C>(task.residual, row, n, room(3));
    const C* join = row_of<T, C>(task.join, row, n, room(4));
    T* result = static_cast<T*>(task.result) + row * n;
    if constexpr (wide) {
      one_row<C>(task, row, carry, output, residual, join, scaled, result);
    } else {
      one_row<C>(task, row, carry, output, residual, join, scaled, scaled);
      narrow_row(scaled, result, n);
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
