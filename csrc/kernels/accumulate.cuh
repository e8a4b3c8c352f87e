// `accumulate_` on the GPU: a thread per unit, samples one after the other.
#pragma once

#include "device.cuh"

namespace pxp::cuda {

// sums [2, samples, units]; labels [samples], may be null where not kByClass: then all samples count.
//
// grid: ceil(units / kThreads) blocks. totals [4, units]; samples with a negative label are left out.
//
// kByClass: as many rows of such blocks as there are samples, or fewer. totals [classes, 4, units]; the row of the first
// sample of a class adds all samples of that class, so every total has one writer and its samples keep their order.
// Samples whose label is no class are left out.
template <class T, bool kByClass>
__global__ void __launch_bounds__(kThreads, kBlocks)
    accumulate_units(double* __restrict__ totals, const T* __restrict__ sums, const int64_t* __restrict__ labels,
                     int64_t classes, int64_t samples, int64_t units) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= units) return;
  const int64_t rows = kByClass ? samples : 1;
  for (int64_t first = blockIdx.y; first < rows; first += gridDim.y) {
    int64_t label = 0;
    if constexpr (kByClass) {
      label = labels[first];
      if (label < 0 || label >= classes) continue;
      int64_t same = 0;
      while (labels[same] != label) ++same;
      if (same < first) continue;
    }
    double* total = totals + label * 4 * units + unit;
    double signed_total = total[0], sample_absolute = total[units];
    double token_absolute = total[2 * units], squared = total[3 * units];
    const T* signed_sum = sums + first * units + unit;
    const T* absolute_sum = signed_sum + samples * units;
#pragma unroll 4
    for (int64_t n = first; n < samples; ++n, signed_sum += units, absolute_sum += units) {
      if constexpr (kByClass) {
        if (labels[n] != label) continue;
      }
      const double s = double(*signed_sum), t = double(*absolute_sum);
      if constexpr (!kByClass) {  // after the loads, so that several are under way at once
        if (labels && labels[n] < 0) continue;
      }
      signed_total += s;
      sample_absolute += magnitude_of(s);
      token_absolute += t;
      // Two roundings, as everywhere else: contracted to one, the CPU would give other bits.
      squared = __dadd_rn(squared, __dmul_rn(s, s));
    }
    total[0] = signed_total;
    total[units] = sample_absolute;
    total[2 * units] = token_absolute;
    total[3 * units] = squared;
  }
}

}  // namespace pxp::cuda
