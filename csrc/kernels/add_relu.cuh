// `add_relu` on the GPU: tensors of one layout, element by element.
#pragma once

#include "device.cuh"

namespace pxp::cuda {

// grid: ceil(elements / V / kThreads). V divides `elements`.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    add_relu_elements(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ result, int64_t elements) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (i >= elements) return;
  const Pack<T, V> first = load<T, V>(a + i), second = load<T, V>(b + i);
  Pack<T, V> sum;
#pragma unroll
  for (int k = 0; k < V; ++k) sum.at[k] = narrow<T>(rectified(widen(first.at[k]) + widen(second.at[k])));
  store<T, V>(result + i, sum);
}

}  // namespace pxp::cuda
