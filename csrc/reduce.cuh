// Sums over threads, each in one fixed order: no atomics.
#pragma once

#include "kernels/device.cuh"

namespace pxp::cuda {

// The sum over the 32 lanes, in every lane; or over those whose numbers differ in the bits from `first` to below `end`.
template <class C>
__device__ __forceinline__ C warp_sum(C value, int first = 1, int end = kWarp) {
  for (int distance = end / 2; distance >= first; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The sum over a row's threads, in all of them: a warp, or a whole block of kThreads. `scratch` is shared, one entry
// per warp, and may be used again at once.
template <int kRowThreads, class C>
__device__ __forceinline__ C row_sum(C value, double* scratch) {
  static_assert(kRowThreads == kWarp || kRowThreads == kThreads, "a row belongs to a warp or to a block");
  value = warp_sum(value);
  if constexpr (kRowThreads == kWarp) {
    return value;
  } else {
    const int warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0) scratch[warp] = double(value);
    __syncthreads();
    double total = 0;
    for (int i = 0; i < kThreads / kWarp; ++i) total += scratch[i];
    __syncthreads();
    return C(total);
  }
}

}  // namespace pxp::cuda
