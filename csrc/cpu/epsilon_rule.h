// The whole rule on neighbouring elements, for every activation and every pass: the part of the loops of `epsilon` that
// the compiler vectorises.
#pragma once

#include "vector.h"

namespace pxp::cpu::PXP_ISA {
namespace {

constexpr bool writes(Pass pass) { return pass != Pass::sum; }
constexpr bool adds(Pass pass) { return pass != Pass::scale; }

// The whole rule for one element: writes what goes back through the layer, and gives the relevance to be summed.
template <Activation A, Pass P, class T, class C>
PXP_FORMULA C one(const T* carry, const T* output, T* scaled, C eps) {
  const C z = widen(*output);
  const C passed = widen(*carry) * ratio<A>(z);
  if constexpr (!writes(P)) {
    return passed * z;
  } else {
    const C stabilized = passed * stabilizing_factor(z, eps);
    *scaled = narrow<T>(stabilized);
    return P == Pass::scale_and_sum_stabilized ? stabilized * z : passed * z;
  }
}

// n neighbouring elements. `scaled` may be `carry` or `output`.
template <class T, class C, Activation A, Pass P>
void apply(const T* carry, const T* output, T* scaled, C* relevance, int64_t n, C eps) {
  PXP_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const C value = one<A, P>(carry + i, output + i, scaled + i, eps);
    if constexpr (adds(P)) relevance[i] = value;
  }
}

// As many columns as their sums stay in the first-level cache while rows pass by; rows are better read in long pieces.
constexpr int64_t kTile = 4096;

// The same for n columns of several rows, whose relevance is added to the sums of the columns at once.
template <class T, class C, Activation A, Pass P>
void apply_rows(const T* carry, const T* output, T* scaled, C* sums, C* absolutes, int64_t rows, int64_t n,
                const EpsilonTask& task) {
  const C eps = C(task.eps);
  for (int64_t row = 0; row < rows; ++row) {
    PXP_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const C relevance = one<A, P>(carry + i, output + i, scaled + i, eps);
      sums[i] += relevance;
      absolutes[i] += magnitude_of(relevance);
    }
    carry += task.carry_strides.row;
    output += task.output_strides.row;
    scaled += task.scaled_strides.row;
  }
}

template <class T, class C>
struct Functions {
  void (*apply)(const T*, const T*, T*, C*, int64_t, C);
  void (*apply_rows)(const T*, const T*, T*, C*, C*, int64_t, int64_t, const EpsilonTask&);
};

template <class T, class C, Activation A, Pass P>
constexpr Functions<T, C> functions() {
  if constexpr (adds(P)) return {apply<T, C, A, P>, apply_rows<T, C, A, P>};
  return {apply<T, C, A, P>, nullptr};
}

template <class T, class C, Pass P>
Functions<T, C> functions_for(Activation activation) {
  switch (activation) {
    case Activation::relu: return functions<T, C, Activation::relu, P>();
    case Activation::relu6: return functions<T, C, Activation::relu6, P>();
    case Activation::gelu: return functions<T, C, Activation::gelu, P>();
    case Activation::gelu_tanh: return functions<T, C, Activation::gelu_tanh, P>();
    case Activation::silu: return functions<T, C, Activation::silu, P>();
    case Activation::hardswish: return functions<T, C, Activation::hardswish, P>();
    default: return functions<T, C, Activation::identity, P>();
  }
}

template <class T, class C>
Functions<T, C> functions_for(const EpsilonTask& task) {
  switch (task.pass) {
    case Pass::scale: return functions_for<T, C, Pass::scale>(task.activation);
    case Pass::sum: return functions_for<T, C, Pass::sum>(task.activation);
    case Pass::scale_and_sum: return functions_for<T, C, Pass::scale_and_sum>(task.activation);
    default: return functions_for<T, C, Pass::scale_and_sum_stabilized>(task.activation);
  }
}

}  // namespace
}  // namespace pxp::cpu::PXP_ISA
