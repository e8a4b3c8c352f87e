// `layer_norm` on the GPU: a warp or a block per row, which is read twice, the second time from the cache.
#pragma once

#include "../reduce.cuh"

namespace pxp::cuda {

template <class T, int V>
__device__ __forceinline__ void scale(const T* carry, const T* output, const Compute<T>* weight, int64_t i,
                                      Compute<T> rstd, Compute<T> eps, Compute<T>* scaled) {
  const Pack<T, V> c = load<T, V>(carry + i), y = load<T, V>(output + i);
#pragma unroll
  for (int k = 0; k < V; ++k) {
    scaled[k] = widen(c.at[k]) * stabilizing_factor(widen(y.at[k]), eps) * rstd;
    if (weight) scaled[k] *= weight[i + k];
  }
}

// grid: ceil(rows / (kThreads / kRowThreads)). All tensors contiguous [rows, columns]; V divides `columns`; `weight`,
// `residual` and `join` may be null, and `result` may be `residual`.
template <class T, int V, int kRowThreads>
__global__ void __launch_bounds__(kThreads, kBlocks)
    layer_norm_rows(const T* __restrict__ carry, const T* __restrict__ output, const Compute<T>* __restrict__ rstd,
                    const Compute<T>* __restrict__ weight, const T* residual, const T* __restrict__ join, T* result,
                    int64_t rows, int64_t columns, double eps) {
  using C = Compute<T>;
  __shared__ double scratch[kThreads / kWarp];
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kRowThreads) + threadIdx.x / kRowThreads;
  if (row >= rows) return;  // whole warps, or nobody
  carry += row * columns;
  output += row * columns;
  result += row * columns;
  if (residual) residual += row * columns;
  if (join) join += row * columns;
  const C deviation = rstd[row];
  const int64_t start = int64_t(threadIdx.x % kRowThreads) * V;

  C sum = 0;
#pragma unroll 1
  for (int64_t i = start; i < columns; i += kRowThreads * V) {
    C scaled[V];
    scale<T, V>(carry, output, weight, i, deviation, C(eps), scaled);
#pragma unroll
    for (int k = 0; k < V; ++k) sum += scaled[k];
  }
  const C mean = row_sum<kRowThreads>(sum, scratch) / C(columns);

#pragma unroll 1
  for (int64_t i = start; i < columns; i += kRowThreads * V) {
    C scaled[V];
    scale<T, V>(carry, output, weight, i, deviation, C(eps), scaled);
    Pack<T, V> rest, total, out;
    if (residual) rest = load<T, V>(residual + i);
    if (join) total = load<T, V>(join + i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      C value = scaled[k] - mean;
      if (residual) value += widen(rest.at[k]);
      if (join) value *= stabilizing_factor(widen(total.at[k]), C(eps));
      out.at[k] = narrow<T>(value);
    }
    store<T, V>(result + i, out);
  }
}

}  // namespace pxp::cuda
