// The loops of `share_`, compiled once per instruction set (PXP_ISA names it).
#include "vector.h"

namespace pxp::cpu::PXP_ISA {
namespace {

template <class C>
struct Factors {
  C eps, first, second;
};

// n neighbouring elements, in place.
template <class C, Form F, bool kGiven>
void apply(C* carry, const C* output, C* product, int64_t n, Factors<C> factors) {
  const auto [eps, first, second] = factors;
  PXP_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const C z = output[i], g = product[i];
    const C relevance = kGiven ? carry[i] : carry[i] * z;
    if constexpr (F == Form::plain) {
      carry[i] = quotient(relevance, g, eps);
    } else if constexpr (F == Form::positive) {
      carry[i] = quotient(relevance, g + z, eps);
    } else if constexpr (F == Form::gamma) {
      const C shared = quotient(relevance, g + first * magnitude_of(z), eps);
      const C as_output = z < C(0) ? -shared : shared;
      carry[i] = z == C(0) ? C(0) : as_output;
      product[i] = shared;
    } else if constexpr (F == Form::both) {
      carry[i] = quotient(first * relevance, g, eps);
      product[i] = quotient(second * relevance, g - z, eps);
    } else {
      const C gains = quotient(first * relevance, g + z, eps), losses = quotient(second * relevance, g - z, eps);
      carry[i] = gains + losses;
      product[i] = gains - losses;
    }
  }
}

template <class C>
using Apply = void (*)(C*, const C*, C*, int64_t, Factors<C>);

template <class C, bool kGiven>
Apply<C> function_for(Form form) {
  switch (form) {
    case Form::positive: return apply<C, Form::positive, kGiven>;
    case Form::gamma: return apply<C, Form::gamma, kGiven>;
    case Form::both: return apply<C, Form::both, kGiven>;
    case Form::both_signed: return apply<C, Form::both_signed, kGiven>;
    default: return apply<C, Form::plain, kGiven>;
  }
}

template <class T, class C>
void elements(const ShareTask& task, int64_t begin, int64_t end) {
  const Factors<C> factors{C(task.eps), C(task.first), C(task.second)};
  const Apply<C> function = task.given ? function_for<C, true>(task.form) : function_for<C, false>(task.form);
  const bool writes_product = task.form != Form::plain && task.form != Form::positive;
  for (int64_t i = begin; i < end; i += kChunk) {
    const int64_t n = end - i < kChunk ? end - i : kChunk;
    T* const carry = static_cast<T*>(task.carry) + i;
    const T* const output = static_cast<const T*>(task.output) + i;
    T* const product = static_cast<T*>(task.product) + i;
    if constexpr (std::is_same_v<T, C>) {
      function(carry, output, product, n, factors);
    } else {
      C wide_carry[kChunk], wide_output[kChunk], wide_product[kChunk];
      widen_row(carry, wide_carry, n);
      widen_row(output, wide_output, n);
      widen_row(product, wide_product, n);
      function(wide_carry, wide_output, wide_product, n, factors);
      narrow_row(wide_carry, carry, n);
      if (writes_product) narrow_row(wide_product, product, n);
    }
  }
}

}  // namespace

void share(const ShareTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return elements<double, double>(task, begin, end);
    case Type::float32: return elements<float, float>(task, begin, end);
    case Type::bfloat16: return elements<BFloat16, float>(task, begin, end);
    case Type::float16: return elements<Half, float>(task, begin, end);
  }
}

}  // namespace pxp::cpu::PXP_ISA
