#include <algorithm>
#include <memory>

#include "common.h"

namespace pxp::cpu {
namespace {

// Radix selection: byte by byte from the top, the k-th smallest key is narrowed down by counting. Linear in n.
template <class Key>
void mark_smallest(const Key* keys, int64_t n, int64_t k, bool* chosen) {
  Key prefix = 0, known = 0;
  int64_t wanted = k;  // the rank, from 1, of the threshold among the keys that share `prefix`
  for (int shift = int(sizeof(Key)) * 8 - 8; shift >= 0; shift -= 8) {
    int64_t counts[256] = {};
    for (int64_t i = 0; i < n; ++i) {
      if ((keys[i] & known) == prefix) ++counts[keys[i] >> shift & 255];
    }
    Key digit = 0;
    while (counts[digit] < wanted) wanted -= counts[digit++];
    prefix |= digit << shift;
    known |= Key(255) << shift;
  }
  // `prefix` is the threshold, and `wanted` of the keys equal to it belong: the first ones.
  for (int64_t i = 0; i < n; ++i) {
    const bool tie = keys[i] == prefix && wanted > 0;
    wanted -= tie;
    chosen[i] = keys[i] < prefix || tie;
  }
}

template <class T>
void select(const T* scores, int64_t n, int64_t k, bool largest, bool* chosen) {
  using Key = decltype(order_key(T()));
  const std::unique_ptr<Key[]> keys(new Key[n]);
  for (int64_t i = 0; i < n; ++i) keys[i] = largest ? Key(~order_key(scores[i])) : order_key(scores[i]);
  mark_smallest(keys.get(), n, k, chosen);
}

Tensor select(const Tensor& scores, int64_t k, bool largest) {
  check_select(scores, k);
  const int64_t n = scores.numel();
  Tensor chosen = torch::stable::new_zeros(scores, {n}, ScalarType::Bool);
  if (k == 0) return chosen;
  const Tensor wide = torch::stable::contiguous(torch::stable::to(scores, compute_type(scores.scalar_type())));
  bool* out = static_cast<bool*>(chosen.mutable_data_ptr());
  if (wide.scalar_type() == ScalarType::Double) {
    select(static_cast<const double*>(wide.const_data_ptr()), n, k, largest, out);
  } else {
    select(static_cast<const float*>(wide.const_data_ptr()), n, k, largest, out);
  }
  return chosen;
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) {
  m.impl("select", TORCH_BOX(static_cast<pxp::Tensor (*)(const pxp::Tensor&, int64_t, bool)>(&pxp::cpu::select)));
}
