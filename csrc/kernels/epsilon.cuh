// `epsilon`, `epsilon_`, `epsilon_over_` and `unit_sums_` on the GPU. Tensors are [sample][row][column] with neighbouring
// columns (see epsilon_layout.h); what is written may be the carry or the output, so nothing here is `__restrict__`.
//
//   epsilon_positions   rows are units:      a warp or a block walks along one row, which ends with its sums
//   epsilon_units       columns are units:   a block takes a tile of columns through some rows, and leaves partial sums
//   epsilon_groups      units are groups of columns (heads): a warp takes one through some rows, and leaves partial
//   sums epsilon_combine     adds the partial sums of all blocks of rows, in their order
#pragma once

#include "../reduce.cuh"

namespace pxp::cuda {

struct EpsilonStrides {
  int64_t sample, row;
};

// Everything but the pointers. `blocks` blocks of `block_rows` rows cover a sample (units inside).
struct EpsilonShape {
  int64_t samples, rows, columns, units, group, blocks, block_rows;
  EpsilonStrides carry, output, scaled;
  Activation activation;
  bool writes;      // the scaled carry; else sums alone are wanted
  bool stabilized;  // sums of what comes out of the stabilizer
  double eps;
};

// Where sums go: those of a sample, or of a block of its rows, lie `item` apart, the two kinds `which`. Null where none
// are wanted.
template <class C>
struct EpsilonSums {
  C* at;
  int64_t item, which;
  bool add;

  __device__ __forceinline__ void put(int64_t index, int kind, int64_t unit, C value) const {
    C* to = at + index * item + kind * which + unit;
    *to = add ? *to + value : value;
  }
};

template <class T>
struct EpsilonRow {
  const T* carry;
  const T* output;
  T* scaled;

  __device__ EpsilonRow(const T* carry, const T* output, T* scaled, const EpsilonShape& shape, int64_t sample,
                        int64_t row)
      : carry(carry + sample * shape.carry.sample + row * shape.carry.row),
        output(output + sample * shape.output.sample + row * shape.output.row),
        scaled(scaled + sample * shape.scaled.sample + row * shape.scaled.row) {}

  __device__ __forceinline__ void advance(const EpsilonShape& shape, int64_t rows) {
    carry += rows * shape.carry.row;
    output += rows * shape.output.row;
    scaled += rows * shape.scaled.row;
  }
};

template <Activation A, class T, int V>
__device__ __forceinline__ void apply_as(const Pack<T, V>& carry, const Pack<T, V>& output, Pack<T, V>& scaled,
                                         const EpsilonShape& shape, Compute<T>* relevance) {
  using C = Compute<T>;
  C passed[V];
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const C z = widen(output.at[k]);
    passed[k] = widen(carry.at[k]) * ratio<A>(z);
    relevance[k] = passed[k] * z;
  }
  if (!shape.writes) return;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const C z = widen(output.at[k]);
    const C stabilized = passed[k] * stabilizing_factor(z, C(shape.eps));
    scaled.at[k] = narrow<T>(stabilized);
    if (shape.stabilized) relevance[k] = stabilized * z;
  }
}

// The whole rule for V neighbours at `offset` of a row; gives their relevance. All threads take the same branch.
template <class T, int V>
__device__ __forceinline__ void apply(const EpsilonRow<T>& row, int64_t offset, const EpsilonShape& shape,
                                      Compute<T>* relevance) {
  const Pack<T, V> carry = load<T, V>(row.carry + offset);
  const Pack<T, V> output = load<T, V>(row.output + offset);
  Pack<T, V> scaled;
  switch (shape.activation) {
    case Activation::relu: apply_as<Activation::relu>(carry, output, scaled, shape, relevance); break;
    case Activation::relu6: apply_as<Activation::relu6>(carry, output, scaled, shape, relevance); break;
    case Activation::gelu: apply_as<Activation::gelu>(carry, output, scaled, shape, relevance); break;
    case Activation::gelu_tanh: apply_as<Activation::gelu_tanh>(carry, output, scaled, shape, relevance); break;
    case Activation::silu: apply_as<Activation::silu>(carry, output, scaled, shape, relevance); break;
    case Activation::hardswish: apply_as<Activation::hardswish>(carry, output, scaled, shape, relevance); break;
    default: apply_as<Activation::identity>(carry, output, scaled, shape, relevance);
  }
  if (shape.writes) store<T, V>(row.scaled + offset, scaled);
}

// grid: ceil(samples * rows / (kThreads / kRowThreads)). V divides `columns`.
template <class T, int V, int kRowThreads>
__global__ void __launch_bounds__(kThreads, 3)
    epsilon_positions(const T* carry, const T* output, T* scaled, const EpsilonSums<Compute<T>> sums,
                      const EpsilonShape shape) {
  using C = Compute<T>;
  __shared__ double scratch[kThreads / kWarp];
  const int64_t rows = shape.samples * shape.rows;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kRowThreads) + threadIdx.x / kRowThreads;
  if (row >= rows) return;  // whole warps, or nobody
  const int64_t sample = row / shape.rows, unit = row % shape.rows;
  const EpsilonRow<T> at(carry, output, scaled, shape, sample, unit);
  C sum = 0, magnitude = 0;
#pragma unroll 1
  for (int64_t i = int64_t(threadIdx.x % kRowThreads) * V; i < shape.columns; i += kRowThreads * V) {
    C relevance[V];
    apply<T, V>(at, i, shape, relevance);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      sum += relevance[k];
      magnitude += magnitude_of(relevance[k]);
    }
  }
  if (!sums.at) return;
  sum = row_sum<kRowThreads>(sum, scratch);
  magnitude = row_sum<kRowThreads>(magnitude, scratch);
  if (threadIdx.x % kRowThreads == 0) {
    sums.put(sample, 0, unit, sum);
    sums.put(sample, 1, unit, magnitude);
  }
}

// grid: samples * blocks * tiles, where a tile is `width` threads of V columns each; width divides kThreads.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    epsilon_units(const T* carry, const T* output, T* scaled, const EpsilonSums<Compute<T>> sums,
                  const EpsilonShape shape, int width, int64_t tiles) {
  using C = Compute<T>;
  __shared__ C shared[2][V][kThreads];
  const int64_t tile = blockIdx.x % tiles, block = blockIdx.x / tiles;  // block: of all samples' blocks
  const int64_t sample = block / shape.blocks;
  const int64_t first = block % shape.blocks * shape.block_rows;
  const int64_t last = first + shape.block_rows < shape.rows ? first + shape.block_rows : shape.rows;
  const int lane = threadIdx.x % width, slot = threadIdx.x / width, slots = kThreads / width;
  const int64_t column = (tile * width + lane) * V;

  C sum[V] = {}, magnitude[V] = {};
  if (column < shape.columns) {
    EpsilonRow<T> at(carry + column, output + column, scaled + column, shape, sample, first + slot);
#pragma unroll 1
    for (int64_t row = first + slot; row < last; row += slots, at.advance(shape, slots)) {
      C relevance[V];
      apply<T, V>(at, 0, shape, relevance);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        sum[k] += relevance[k];
        magnitude[k] += magnitude_of(relevance[k]);
      }
    }
  }
  if (!sums.at) return;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    shared[0][k][threadIdx.x] = sum[k];
    shared[1][k][threadIdx.x] = magnitude[k];
  }
  __syncthreads();

  for (int i = threadIdx.x; i < 2 * width * V; i += kThreads) {
    const int which = i / (width * V), offset = i % (width * V);
    const int64_t unit = tile * width * V + offset;
    if (unit >= shape.units) continue;
    const C* part = &shared[which][offset % V][offset / V];
    double total = 0;
    for (int s = 0; s < slots; ++s) total += double(part[s * width]);
    sums.put(block, which, unit, C(total));
  }
}

// grid: ceil(samples * blocks * units / (kThreads / kWarp)). `lanes` lanes, a power of two, share a row of the group,
// so that a warp takes several rows at a time where groups are narrow. V divides `group`.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    epsilon_groups(const T* carry, const T* output, T* scaled, const EpsilonSums<Compute<T>> sums,
                   const EpsilonShape shape, int lanes) {
  using C = Compute<T>;
  const int64_t item = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (item >= shape.samples * shape.blocks * shape.units) return;  // whole warps
  const int64_t unit = item % shape.units, block = item / shape.units;
  const int64_t sample = block / shape.blocks;
  const int64_t first = block % shape.blocks * shape.block_rows;
  const int64_t last = first + shape.block_rows < shape.rows ? first + shape.block_rows : shape.rows;
  const int slot = threadIdx.x % kWarp / lanes, slots = kWarp / lanes;
  const int64_t start = unit * shape.group + int64_t(threadIdx.x % lanes) * V, end = (unit + 1) * shape.group;
  C sum = 0, magnitude = 0;
  EpsilonRow<T> at(carry, output, scaled, shape, sample, first + slot);
#pragma unroll 1
  for (int64_t row = first; row < last; row += slots, at.advance(shape, slots)) {
    C value = 0;
    if (row + slot < last) {
#pragma unroll 1
      for (int64_t i = start; i < end; i += lanes * V) {
        C relevance[V];
        apply<T, V>(at, i, shape, relevance);
#pragma unroll
        for (int k = 0; k < V; ++k) value += relevance[k];
      }
    }
    value = warp_sum(value, 1, lanes);
    sum += value;
    magnitude += magnitude_of(value);
  }
  sum = warp_sum(sum, lanes);
  magnitude = warp_sum(magnitude, lanes);
  if (threadIdx.x % kWarp == 0) {
    sums.put(block, 0, unit, sum);
    sums.put(block, 1, unit, magnitude);
  }
}

// grid: ceil(2 * samples * units / kThreads). partials [samples][blocks][2][units].
template <class C>
__global__ void __launch_bounds__(kThreads, 3)
    epsilon_combine(const C* partials, const EpsilonSums<C> sums, int64_t samples, int64_t units, int64_t blocks) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= 2 * samples * units) return;
  const int64_t unit = i % units, sample = i / units % samples, which = i / units / samples;
  const C* part = partials + (sample * blocks * 2 + which) * units + unit;
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += double(part[block * 2 * units]);
  sums.put(sample, int(which), unit, C(total));
}

}  // namespace pxp::cuda
