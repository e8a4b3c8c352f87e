// The loop of `add_relu`, compiled once per instruction set (PXP_ISA names it).
#include "vector.h"

namespace pxp::cpu::PXP_ISA {
namespace {

template <class T>
void elements(const T* __restrict a, const T* __restrict b, T* __restrict result, int64_t n) {
  for (int64_t i = 0; i < n; ++i) result[i] = narrow<T>(rectified(widen(a[i]) + widen(b[i])));
}

void elements(const Half* a, const Half* b, Half* result, int64_t n) {
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t length = n - i < kChunk ? n - i : kChunk;
    float wide_a[kChunk], wide_b[kChunk], sums[kChunk];
    widen_row(a + i, wide_a, length);
    widen_row(b + i, wide_b, length);
    elements<float>(wide_a, wide_b, sums, length);
    narrow_row(sums, result + i, length);
  }
}

template <class T>
void range(const AddReluTask& task, int64_t begin, int64_t end) {
  elements(static_cast<const T*>(task.a) + begin, static_cast<const T*>(task.b) + begin,
           static_cast<T*>(task.result) + begin, end - begin);
}

}  // namespace

void add_relu(const AddReluTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return range<double>(task, begin, end);
    case Type::float32: return range<float>(task, begin, end);
    case Type::bfloat16: return range<BFloat16>(task, begin, end);
    case Type::float16: return range<Half>(task, begin, end);
  }
}

}  // namespace pxp::cpu::PXP_ISA
