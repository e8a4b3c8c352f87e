// `accumulate_` on the GPU: a thread per unit, samples one after the other.
#pragma once

#include "device.cuh"

namespace pxp::cuda {

// grid: ceil(units / kThreads). totals [4, units], sums [2, samples, units].
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    accumulate_units(double* __restrict__ totals, const T* __restrict__ sums, int64_t samples, int64_t units) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= units) return;
  double signed_total = totals[unit], sample_absolute = totals[units + unit];
  double token_absolute = totals[2 * units + unit], squared = totals[3 * units + unit];
  const T* signed_sum = sums + unit;
  const T* absolute_sum = signed_sum + samples * units;
#pragma unroll 4
  for (int64_t n = 0; n < samples; ++n, signed_sum += units, absolute_sum += units) {
    const double s = double(*signed_sum);
    signed_total += s;
    sample_absolute += magnitude_of(s);
    token_absolute += double(*absolute_sum);
    // Two roundings, as everywhere else: contracted to one, the CPU would give other bits.
    squared = __dadd_rn(squared, __dmul_rn(s, s));
  }
  totals[unit] = signed_total;
  totals[units + unit] = sample_absolute;
  totals[2 * units + unit] = token_absolute;
  totals[3 * units + unit] = squared;
}

}  // namespace pxp::cuda
