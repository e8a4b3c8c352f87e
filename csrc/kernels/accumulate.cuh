// `accumulate_` on the GPU: a thread per unit, samples one after the other.
#pragma once

#include "device.cuh"

namespace pxp::cuda {

// The four totals of one unit, `units` apart in memory.
struct UnitTotals {
  double signed_sum, sample_absolute, token_absolute, squared;

  __device__ __forceinline__ UnitTotals(const double* from, int64_t units)
      : signed_sum(from[0]),
        sample_absolute(from[units]),
        token_absolute(from[2 * units]),
        squared(from[3 * units]) {}

  // Without a branch, so that the loads of several samples are under way at once.
  __device__ __forceinline__ void add(double s, double t, bool counts) {
    signed_sum = counts ? signed_sum + s : signed_sum;
    sample_absolute = counts ? sample_absolute + magnitude_of(s) : sample_absolute;
    token_absolute = counts ? token_absolute + t : token_absolute;
    // Two roundings, as everywhere else: contracted to one, the CPU would give other bits.
    squared = counts ? __dadd_rn(squared, __dmul_rn(s, s)) : squared;
  }

  __device__ __forceinline__ void store(double* to, int64_t units) const {
    to[0] = signed_sum;
    to[units] = sample_absolute;
    to[2 * units] = token_absolute;
    to[3 * units] = squared;
  }
};

// grid: ceil(units / kThreads). totals [4, units], sums [2, samples, units]. labels [samples], or null where all samples
// count: those with a negative label are left out.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    accumulate_units(double* __restrict__ totals, const T* __restrict__ sums, const int64_t* __restrict__ labels,
                     int64_t samples, int64_t units) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= units) return;
  UnitTotals total(totals + unit, units);
  const T* signed_sum = sums + unit;
  const T* absolute_sum = signed_sum + samples * units;
#pragma unroll 4
  for (int64_t n = 0; n < samples; ++n, signed_sum += units, absolute_sum += units) {
    total.add(double(*signed_sum), double(*absolute_sum), !labels || labels[n] >= 0);
  }
  total.store(totals + unit, units);
}

// grid: (ceil(units / kThreads), samples or fewer). totals [classes, 4, units], sums [2, samples, units], labels
// [samples]; samples whose label is no class are left out. The row of blocks of the first sample of a class adds all
// samples of that class, so every total has one writer and its samples keep their order.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    accumulate_classes(double* __restrict__ totals, const T* __restrict__ sums, const int64_t* __restrict__ labels,
                       int64_t classes, int64_t samples, int64_t units) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= units) return;
  for (int64_t first = blockIdx.y; first < samples; first += gridDim.y) {
    const int64_t label = labels[first];
    if (label < 0 || label >= classes) continue;
    int64_t same = 0;
    while (labels[same] != label) ++same;
    if (same < first) continue;
    double* of_class = totals + label * 4 * units + unit;
    UnitTotals total(of_class, units);
    const T* signed_sum = sums + unit;
    const T* absolute_sum = signed_sum + samples * units;
    for (int64_t n = first; n < samples; ++n) {
      if (labels[n] != label) continue;
      total.add(double(signed_sum[n * units]), double(absolute_sum[n * units]), true);
    }
    total.store(of_class, units);
  }
}

}  // namespace pxp::cuda
