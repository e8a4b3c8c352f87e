// The products that tensor cores cannot take: any strides, any number of channels, every bit of the factors kept.
#pragma once

#include "product.cuh"

namespace pxp::cuda {

// Each thread sums 4 by 4 of a tile's 64 by 64, from slices of 16 features that the block has brought near.
template <class T>
struct FmaLoop {
  using Element = T;
  static constexpr int kRows = 64, kColumns = 64, kThreadCount = kThreads, kBlockCount = 2, kPack = 1;

 private:
  using C = Compute<T>;
  static constexpr int kDepth = 16, kEach = 4, kAcross = kColumns / kEach;
  static constexpr int kScaledPitch = kRows + 1, kWeightPitch = kColumns;

 public:
  static constexpr int kOperandBytes = kDepth * (kScaledPitch + kWeightPitch) * int(sizeof(C));

  __device__ __forceinline__ static void run(const T* scaled, const T* weight, unsigned char* memory, C* values,
                                             const ProductRows<kRows>& rows, const ProductTile& tile,
                                             const ProductShape& shape) {
    C* near_scaled = reinterpret_cast<C*>(memory);
    C* near_weight = near_scaled + kDepth * kScaledPitch;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    scaled += int64_t(tile.group) * shape.features * shape.scaled.channel;
    weight += int64_t(tile.group) * shape.features * shape.weight.sample + tile.channel * shape.weight.channel;
    C sums[kEach][kEach] = {};
    TapWalk tap(tile, shape);
    const int taps = tile.axis[0].taps * tile.axis[1].taps;
#pragma unroll 1
    for (int t = 0; t < taps; ++t, tap.next(tile, shape)) {
#pragma unroll 1
      for (int feature = 0; feature < shape.features; feature += kDepth) {
        for (int i = threadIdx.x; i < kRows * kDepth; i += kThreadCount) {
          const int k = i % kDepth, row = i / kDepth;
          const bool there =
              feature + k < shape.features && tap.sees(rows.position[0][row], rows.position[1][row], shape);
          near_scaled[k * kScaledPitch + row] =
              there ? widen(scaled[rows.scaled[row] + tap.scaled + (feature + k) * shape.scaled.channel]) : C(0);
        }
        for (int i = threadIdx.x; i < kDepth * kColumns; i += kThreadCount) {
          const int column = i % kColumns, k = i / kColumns;
          const bool there = feature + k < shape.features && column < tile.columns;
          near_weight[k * kWeightPitch + column] =
              there ? widen(weight[(feature + k) * shape.weight.sample + tap.weight + column * shape.weight.channel])
                    : C(0);
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kDepth; ++k) {
          C a[kEach], b[kEach];
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
            a[i] = near_scaled[k * kScaledPitch + down * kEach + i];
            b[i] = near_weight[k * kWeightPitch + across + i * kAcross];
          }
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
#pragma unroll
            for (int j = 0; j < kEach; ++j) sums[i][j] += a[i] * b[j];
          }
        }
        __syncthreads();
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        values[(down * kEach + i) * values_pitch<FmaLoop> + across + j * kAcross] = sums[i][j];
      }
    }
  }
};

// Each thread walks through the taps of one pixel and channel after the other. A tile's columns are the channels of all
// groups: for this loop, a shape has one group, and `group_channels` says how many channels really belong together.
template <class T>
struct DirectLoop {
  using Element = T;
  static constexpr int kRows = 64, kColumns = 64, kThreadCount = kThreads, kBlockCount = 2, kPack = 1;
  static constexpr int kOperandBytes = 0;

  __device__ __forceinline__ static void run(const T* scaled, const T* weight, unsigned char*, Compute<T>* values,
                                             const ProductRows<kRows>& rows, const ProductTile& tile,
                                             const ProductShape& shape) {
    const int column = threadIdx.x % kColumns, channel = tile.channel + column;
    if (column >= tile.columns) return;
    const int64_t first_feature = int64_t(channel / shape.group_channels) * shape.features;
    scaled += first_feature * shape.scaled.channel;
    weight += first_feature * shape.weight.sample + channel % shape.group_channels * shape.weight.channel;
    const int taps = tile.axis[0].taps * tile.axis[1].taps;
#pragma unroll 1
    for (int row = threadIdx.x / kColumns; row < tile.rows; row += kThreadCount / kColumns) {
      Compute<T> sum = 0;
      TapWalk tap(tile, shape);
#pragma unroll 1
      for (int t = 0; t < taps; ++t, tap.next(tile, shape)) {
        if (!tap.sees(rows.position[0][row], rows.position[1][row], shape)) continue;
        const T* above = scaled + rows.scaled[row] + tap.scaled;
        const T* factor = weight + tap.weight;
        for (int k = 0; k < shape.features; ++k) {
          sum += widen(above[k * shape.scaled.channel]) * widen(factor[k * shape.weight.sample]);
        }
      }
      values[row * values_pitch<DirectLoop> + column] = sum;
    }
  }
};

}  // namespace pxp::cuda
