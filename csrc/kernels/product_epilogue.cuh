// What happens to the sums of a tile, which lie in shared memory as [row][channel]: the carry joins, the epsilon rule
// of the layer below is applied, and the relevance of its units is summed over the rows of each sample. A tile leaves
// partial sums, one set for every sample that it meets (a segment); `product_combine` adds them in their order.
#pragma once

#include "../reduce.cuh"
#include "product_shape.cuh"

namespace pxp::cuda {

// Padded so that the rows which a tensor core's sums are spread over start in different banks.
template <class Loop>
constexpr int values_pitch = Loop::kColumns + 8;

// `values`: the carry, and afterwards the relevance.
template <Activation A, class T, int V>
__device__ __forceinline__ void finish_as(const Pack<T, V>& output, Compute<T> (&values)[V], Pack<T, V>& result,
                                          Compute<T> eps, bool stabilized_sums) {
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const Compute<T> z = widen(output.at[k]);
    const Compute<T> passed = values[k] * ratio<A>(z);
    const Compute<T> scaled = passed * stabilizing_factor(z, eps);
    result.at[k] = narrow<T>(scaled);
    values[k] = (stabilized_sums ? scaled : passed) * z;
  }
}

template <class T, int V>
__device__ __forceinline__ Pack<T, V> finish_pack(const Pack<T, V>& output, Compute<T> (&values)[V],
                                                  const ProductShape& shape) {
  Pack<T, V> result;
  const Compute<T> eps = Compute<T>(shape.eps);
  const bool stabilized = shape.stabilized_sums;
  switch (shape.activation) {
    case Activation::relu: finish_as<Activation::relu>(output, values, result, eps, stabilized); break;
    case Activation::relu6: finish_as<Activation::relu6>(output, values, result, eps, stabilized); break;
    case Activation::gelu: finish_as<Activation::gelu>(output, values, result, eps, stabilized); break;
    case Activation::gelu_tanh: finish_as<Activation::gelu_tanh>(output, values, result, eps, stabilized); break;
    case Activation::silu: finish_as<Activation::silu>(output, values, result, eps, stabilized); break;
    case Activation::hardswish: finish_as<Activation::hardswish>(output, values, result, eps, stabilized); break;
    default: finish_as<Activation::identity>(output, values, result, eps, stabilized);
  }
  return result;
}

// Where the partial sums of a tile's segment begin: signed ones, and `units` further on absolute ones.
__device__ __forceinline__ int64_t partials_at(const ProductShape& shape, int64_t tile, int segment) {
  return (tile * shape.segments + segment) * 2 * shape.units;
}

// Calls body(segment, first row, last row) for every sample that the tile meets.
template <class Body>
__device__ __forceinline__ void for_segments(const ProductTile& tile, const Body& body) {
  int64_t end = (tile.sample + 1) * tile.positions - tile.first;  // of the sample, as a row of the tile
  int first = 0;
  for (int segment = 0; first < tile.rows; ++segment, end += tile.positions) {
    const int last = end < tile.rows ? int(end) : tile.rows;
    body(segment, first, last);
    first = last;
  }
}

// A thread per column and kind of sum.
template <class Loop, class C>
__device__ __forceinline__ void sum_columns(C* partials, const C* values, const ProductTile& tile,
                                            const ProductShape& shape) {
  for (int i = threadIdx.x; i < 2 * Loop::kColumns; i += Loop::kThreadCount) {
    const int column = i % Loop::kColumns;
    const bool absolute = i >= Loop::kColumns;
    if (column >= tile.columns) continue;
    const int64_t unit = int64_t(tile.group) * shape.channels + tile.channel + column + (absolute ? shape.units : 0);
    for_segments(tile, [&](int segment, int first, int last) {
      C total = 0;
#pragma unroll 4
      for (int row = first; row < last; ++row) {
        const C value = values[row * values_pitch<Loop> + column];
        total += absolute ? magnitude_of(value) : value;
      }
      partials[partials_at(shape, tile.index, segment) + unit] = total;
    });
  }
}

// A warp per head, a lane per row. Of every pack of `kPack` channels the sum lies at the first.
template <class Loop, class C>
__device__ __forceinline__ void sum_heads(C* partials, const C* values, const ProductTile& tile,
                                          const ProductShape& shape) {
  const int lane = threadIdx.x % kWarp;
  for (int column = threadIdx.x / kWarp * shape.head; column < tile.columns;
       column += Loop::kThreadCount / kWarp * shape.head) {
    for_segments(tile, [&](int segment, int first, int last) {
      C sum = 0, magnitude = 0;
      for (int row = first + lane; row < last; row += kWarp) {
        C head = 0;
        for (int k = column; k < column + shape.head; k += Loop::kPack) head += values[row * values_pitch<Loop> + k];
        sum += head;
        magnitude += magnitude_of(head);
      }
      sum = warp_sum(sum);
      magnitude = warp_sum(magnitude);
      if (lane == 0) {
        C* out = partials + partials_at(shape, tile.index, segment) + (tile.channel + column) / shape.head;
        out[0] = sum;
        out[shape.units] = magnitude;
      }
    });
  }
}

// V neighbours in shared memory, four at a time: one at a time, the lanes of a warp would meet in few banks.
template <int V, class C>
__device__ __forceinline__ void load_values(C (&to)[V], const C* from) {
  constexpr int kAtOnce = V % 4 ? V : 4;
#pragma unroll
  for (int k = 0; k < V; k += kAtOnce) {
    const auto pack = load<C, kAtOnce>(from + k);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) to[k + i] = pack.at[i];
  }
}
template <int V, class C>
__device__ __forceinline__ void store_values(C* to, const C (&from)[V]) {
  constexpr int kAtOnce = V % 4 ? V : 4;
#pragma unroll
  for (int k = 0; k < V; k += kAtOnce) {
    Pack<C, kAtOnce> pack;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) pack.at[i] = from[k + i];
    *reinterpret_cast<Pack<C, kAtOnce>*>(to + k) = pack;
  }
}

template <class Loop, class T, class C>
__device__ __forceinline__ void finish_tile(const T* output, const T* carry, T* result, C* partials, C* relevance,
                                            C* values, const ProductRows<Loop::kRows>& rows, const ProductTile& tile,
                                            const ProductShape& shape) {
  constexpr int V = Loop::kPack, kChunks = Loop::kColumns / V, kBatch = 2;
  static_assert(Loop::kRows * kChunks % (kBatch * Loop::kThreadCount) == 0, "every thread has whole batches");
  const int64_t step = V > 1 ? 1 : shape.output.channel;
  const int64_t channel = int64_t(tile.group) * shape.channels + tile.channel;
#pragma unroll 1
  for (int start = threadIdx.x; start < Loop::kRows * kChunks; start += kBatch * Loop::kThreadCount) {
    // All loads of a batch are on their way before the first is used.
    Pack<T, V> z[kBatch], joining[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = start + b * Loop::kThreadCount, row = i / kChunks, column = i % kChunks * V;
      if (row >= tile.rows || column >= tile.columns) continue;
      const int64_t at = rows.output[row] + (channel + column) * step;
      z[b] = load<T, V>(output + at);
      if (carry) joining[b] = load<T, V>(carry + at);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = start + b * Loop::kThreadCount, row = i / kChunks, column = i % kChunks * V;
      if (row >= tile.rows || column >= tile.columns) continue;
      C* place = values + row * values_pitch<Loop> + column;
      C own[V];
      load_values<V>(own, place);
#pragma unroll
      for (int k = 0; k < V; ++k) own[k] += carry ? widen(joining[b].at[k]) : C(0);
      store<T, V>(result + rows.output[row] + (channel + column) * step, finish_pack<T, V>(z[b], own, shape));
      if (relevance) {
#pragma unroll
        for (int k = 0; k < V; ++k) relevance[(tile.first + row) * shape.channels + tile.channel + column + k] = own[k];
      }
      if (shape.head > 1) {
#pragma unroll
        for (int k = 1; k < V; ++k) own[0] += own[k];
        place[0] = own[0];
      } else {
        store_values<V>(place, own);
      }
    }
  }
  if (!partials) return;
  __syncthreads();
  shape.head > 1 ? sum_heads<Loop>(partials, values, tile, shape) : sum_columns<Loop>(partials, values, tile, shape);
}

// The table that the sums are added to: [2][samples][units], neighbouring units.
template <class C>
struct SumsTable {
  C* at;
  int64_t kind, sample;
};

// grid: ceil(2 * samples * units / kThreads). `rows`: of a tile.
template <class C>
__global__ void __launch_bounds__(kThreads, kBlocks)
    product_combine(const C* __restrict__ partials, const SumsTable<C> sums, int rows, const ProductShape shape) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= 2 * shape.samples * shape.units) return;
  const int64_t unit = i % shape.units, sample = i / shape.units % shape.samples,
                kind = i / shape.units / shape.samples;
  double total = 0;
#pragma unroll 1
  for (int parity = 0; parity < int(class_count(shape)); ++parity) {
    const int64_t positions = int64_t(class_axis(shape, 0, parity / shape.stride[1]).count) *
                              class_axis(shape, 1, parity % shape.stride[1]).count;
    if (!positions) continue;
    int64_t tile = sample * positions / rows;
    const int64_t last = ((sample + 1) * positions - 1) / rows;
    // The sample's first tile may begin with others; all further ones begin with this.
    int segment = int(sample - tile * rows / positions);
    for (; tile <= last; ++tile, segment = 0) {
      total += double(partials[partials_at(shape, parity * shape.tiles + tile, segment) + kind * shape.units + unit]);
    }
  }
  C& sum = sums.at[kind * sums.kind + sample * sums.sample + unit];
  sum = C(double(sum) + total);
}

// For heads that fit no tile, from the relevance of all channels, [samples][positions][channels].
// grid: samples * units.
template <class C>
__global__ void __launch_bounds__(kThreads, kBlocks)
    product_heads(const C* __restrict__ relevance, const SumsTable<C> sums, const ProductShape shape) {
  __shared__ double scratch[kThreads / kWarp];
  const int64_t unit = blockIdx.x % shape.units, sample = blockIdx.x / shape.units, positions = shape.size[1];
  const C* at = relevance + sample * positions * shape.channels + unit * shape.head;
  C sum = 0, magnitude = 0;
#pragma unroll 1
  for (int64_t position = threadIdx.x; position < positions; position += kThreads) {
    C head = 0;
    for (int k = 0; k < shape.head; ++k) head += at[position * shape.channels + k];
    sum += head;
    magnitude += magnitude_of(head);
  }
  sum = row_sum<kThreads>(sum, scratch);
  magnitude = row_sum<kThreads>(magnitude, scratch);
  if (threadIdx.x == 0) {
    C* out = sums.at + sample * sums.sample + unit;
    out[0] += sum;
    out[sums.kind] += magnitude;
  }
}

}  // namespace pxp::cuda
