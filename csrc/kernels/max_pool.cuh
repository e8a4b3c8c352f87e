// `max_pool` and `max_pool_epsilon` on the GPU. Tensors are [sample][row][column][channel]; contiguous ones have every
// channel as a sample of one channel.
//
//   max_pool_winners   a thread takes a window, and writes its largest value or the number of the position that has it
//   max_pool_carry     a block takes a tile of channels through some positions of a sample: each gathers the carries of
//                      the windows that it wins, and is finished at once; partial sums are left behind
//   max_pool_combine   adds the partial sums of all blocks of positions, in their order
//
// That who won is known before anything is written lets the result lie where the values were.
#pragma once

#include <type_traits>

#include "../max_pool_window.h"
#include "../reduce.cuh"

namespace pxp::cuda {

// grid: ceil(windows * channels / V / kThreads). V divides `channels`; `Result` is uint16_t for numbers, T for values.
template <class T, int V, bool kNumbers, class Result = std::conditional_t<kNumbers, uint16_t, T>>
__global__ void __launch_bounds__(kThreads, kBlocks)
    max_pool_winners(const T* __restrict__ value, Result* __restrict__ result, const MaxPoolShape shape) {
  using C = Compute<T>;
  const MaxPoolAxis &down = shape.axes[0], &along = shape.axes[1];
  const int64_t packs = shape.channels / V;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x, window = item / packs;
  const int64_t row = window / along.pooled, sample = row / down.pooled;
  if (sample >= shape.samples) return;
  const int y = int(row % down.pooled), x = int(window % along.pooled);
  const int first_row = down.first_step(y), end_row = down.end_step(y);
  const int first_column = along.first_step(x), end_column = along.end_step(x);
  const T* image = value + sample * down.size * along.size * shape.channels + item % packs * V;

  C best[V] = {};
  Pack<Result, V> winner{};
#pragma unroll 1
  for (int i = first_row; i < end_row; ++i) {
    const int64_t line = int64_t(down.start(y) + i * down.dilation) * along.size;
#pragma unroll 1
    for (int j = first_column; j < end_column; ++j) {
      const Pack<T, V> pack = load<T, V>(image + (line + along.start(x) + j * along.dilation) * shape.channels);
      const bool first = i == first_row && j == first_column;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const C candidate = widen(pack.at[k]);
        // A later NaN takes the place of an earlier one: PyTorch's rule.
        if (first || candidate > best[k] || candidate != candidate) {
          best[k] = candidate;
          if constexpr (kNumbers) {
            winner.at[k] = uint16_t(i * along.kernel + j);
          } else {
            winner.at[k] = pack.at[k];
          }
        }
      }
    }
  }
  store<Result, V>(result + item * V, winner);
}

// What `max_pool_carry` reads and writes. `rest` and `partials` may be null, `result` may be `value`; partials are
// [2][blocks][samples * channels].
template <class T>
struct MaxPoolCarry {
  const T* carry;
  const uint16_t* winners;
  const T* value;
  const T* rest;
  T* result;
  Compute<T>* partials;
  int64_t blocks, block_positions;
  bool stabilizes;
  double eps;
};

// grid: samples * blocks * tiles, where a tile is `width` threads of V channels each; width divides kThreads.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    max_pool_carry(const MaxPoolCarry<T> at, const MaxPoolShape shape, int width, int64_t tiles) {
  using C = Compute<T>;
  __shared__ C shared[2][V][kThreads];
  const MaxPoolAxis &down = shape.axes[0], &along = shape.axes[1];
  const int64_t tile = blockIdx.x % tiles, block = blockIdx.x / tiles % at.blocks;
  const int64_t sample = blockIdx.x / tiles / at.blocks;
  const int lane = threadIdx.x % width, slot = threadIdx.x / width, slots = kThreads / width;
  const int64_t channel = (tile * width + lane) * V;
  const int positions = down.size * along.size;
  const int64_t end = (block + 1) * at.block_positions < positions ? (block + 1) * at.block_positions : positions;

  C sum[V] = {}, magnitude[V] = {};
  if (channel < shape.channels) {
    const int64_t image = sample * positions * shape.channels + channel;
    const int64_t pooled = sample * down.pooled * along.pooled * shape.channels + channel;
#pragma unroll 1
    for (int position = int(block * at.block_positions) + slot; position < end; position += slots) {
      const int y = position / along.size, x = position % along.size;
      C total[V] = {};
      const int end_row = down.end_over(y), end_column = along.end_over(x);
#pragma unroll 1
      for (int i = down.first_over(y); i < end_row; ++i) {
        const int down_step = down.step_at(i, y);
        if (down_step < 0) continue;
#pragma unroll 1
        for (int j = along.first_over(x); j < end_column; ++j) {
          const int step = along.step_at(j, x);
          if (step < 0) continue;
          const int64_t window = pooled + (int64_t(i) * along.pooled + j) * shape.channels;
          const Pack<uint16_t, V> winners = load<uint16_t, V>(at.winners + window);
          const Pack<T, V> carry = load<T, V>(at.carry + window);
#pragma unroll
          for (int k = 0; k < V; ++k) {
            if (winners.at[k] == down_step * along.kernel + step) total[k] += widen(carry.at[k]);
          }
        }
      }
      const int64_t here = image + int64_t(position) * shape.channels;
      if (at.rest) {
        const Pack<T, V> rest = load<T, V>(at.rest + here);
#pragma unroll
        for (int k = 0; k < V; ++k) total[k] += widen(rest.at[k]);
      }
      const Pack<T, V> value = load<T, V>(at.value + here);
      Pack<T, V> result;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const C z = widen(value.at[k]), relevance = total[k] * z;
        sum[k] += relevance;
        magnitude[k] += magnitude_of(relevance);
        result.at[k] = narrow<T>(at.stabilizes ? total[k] * stabilizing_factor(z, C(at.eps)) : total[k]);
      }
      store<T, V>(at.result + here, result);
    }
  }
  if (!at.partials) return;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    shared[0][k][threadIdx.x] = sum[k];
    shared[1][k][threadIdx.x] = magnitude[k];
  }
  __syncthreads();

  for (int i = threadIdx.x; i < 2 * width * V; i += kThreads) {
    const int which = i / (width * V), offset = i % (width * V);
    const int64_t unit = tile * width * V + offset;
    if (unit >= shape.channels) continue;
    const C* part = &shared[which][offset % V][offset / V];
    double total = 0;
    for (int s = 0; s < slots; ++s) total += double(part[s * width]);
    at.partials[((which * at.blocks + block) * shape.samples + sample) * shape.channels + unit] = C(total);
  }
}

// grid: ceil(2 * samples * channels / kThreads). Adds to `sums`, [2, images, units] with any strides but the last.
template <class C>
__global__ void __launch_bounds__(kThreads, kBlocks)
    max_pool_combine(const C* __restrict__ partials, C* __restrict__ sums, int64_t which_stride, int64_t image_stride,
                     const MaxPoolShape shape, int64_t blocks) {
  const int64_t items = shape.samples * shape.channels;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= 2 * items) return;
  const int64_t which = i / items, item = i % items;
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += double(partials[(which * blocks + block) * items + item]);
  sums[which * which_stride + item / shape.units * image_stride + item % shape.units] += C(total);
}

}  // namespace pxp::cuda
