// An input gradient (of a linear layer or a convolution) with the epsilon work of the layer below as its epilogue: one
// tile of pixels and channels per block. How the products of a tile are summed is the `Loop`:
//
//   TensorLoop   tensor cores: bfloat16, float16, and float32 rounded to tf32 (here)
//   FmaLoop      float32 and float64 as they are, and anything in an awkward place (product_general.cuh)
//   DirectLoop   convolutions with few channels in a group (product_general.cuh)
//
// What follows is the same for all (product_epilogue.cuh).
//
// TensorLoop uses mma.sync, which every GPU from sm_80 on has. On sm_90 and sm_100 this reaches only a part of what
// their own instructions (wgmma, tcgen05) reach: expect a product with many features to be faster in a library, and
// the fusion to pay where writing and reading the carry again would cost more than that.
#pragma once

#include "product_epilogue.cuh"
#include "product_shape.cuh"
#include "tensor_core.cuh"

namespace pxp::cuda {

template <class Loop>
constexpr int product_bytes() {
  using C = Compute<typename Loop::Element>;
  const int values = Loop::kRows * values_pitch<Loop> * int(sizeof(C));
  return int(sizeof(ProductRows<Loop::kRows>)) + (Loop::kOperandBytes > values ? Loop::kOperandBytes : values);
}

// grid: as planned by plan_tiles. `carry` and either of `partials` and `relevance`, or both, may be null.
template <class Loop, class T = typename Loop::Element>
__global__ void __launch_bounds__(Loop::kThreadCount, Loop::kBlockCount)
    product(const T* __restrict__ scaled, const T* __restrict__ weight, const T* __restrict__ output,
            const T* __restrict__ carry, T* __restrict__ result, Compute<T>* __restrict__ partials,
            Compute<T>* __restrict__ relevance, const ProductShape shape) {
  static_assert(product_bytes<Loop>() <= 99 * 1024, "more than a block may have on sm_86, sm_89 and sm_120");
  const ProductTile tile = product_tile<Loop::kRows>(shape);
  if (!tile.rows) return;
  auto& rows = *reinterpret_cast<ProductRows<Loop::kRows>*>(dynamic_shared_memory());
  // The operands on their way in, and when all are in, the sums: one memory after the other.
  unsigned char* memory = dynamic_shared_memory() + sizeof rows;
  auto* values = reinterpret_cast<Compute<T>*>(memory);
  find_rows<Loop::kRows, Loop::kThreadCount>(rows, tile, shape);
  __syncthreads();
  Loop::run(scaled, weight, memory, values, rows, tile, shape);
  __syncthreads();
  finish_tile<Loop>(output, carry, result, partials, relevance, values, rows, tile, shape);
}

// kWarpsDown * kWarpsAcross warps share a tile of kRows_ pixels by kColumns_ channels. Features come in slices of 64
// bytes, `kStages` of which are on their way at a time. Wants neighbouring channels (and features), and whole packs of
// 16 bytes everywhere.
template <class T, int kRows_, int kColumns_, int kWarpsDown, int kWarpsAcross>
struct TensorLoop {
  using Element = T;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kThreadCount = kWarpsDown * kWarpsAcross * kWarp, kBlockCount = 512 / kThreadCount;
  static constexpr int kPack = kVector<T>;

 private:
  static constexpr int kStages = 4, kDepth = 64 / int(sizeof(T));
  // Padded so that the rows that are read at once start in different banks.
  static constexpr int kScaledPitch = kDepth + kPack, kWeightPitch = kColumns + 8;
  static constexpr int kStageElements = kRows * kScaledPitch + kDepth * kWeightPitch;
  static constexpr int kWarpRows = kRows / kWarpsDown, kWarpColumns = kColumns / kWarpsAcross;
  static constexpr int kDown = kWarpRows / 16, kAcross = kWarpColumns / 8;  // matrices of 16 by 8 sums in a warp
  static constexpr int kFactorDepth = 32 / int(sizeof(T));                  // features of one tensor-core instruction
  static constexpr int kScaledChunks = kDepth / kPack, kWeightChunks = kColumns / kPack;  // of 16 bytes, in a row
  static constexpr int kScaledPasses = kRows * kScaledChunks / kThreadCount;
  static constexpr int kWeightPasses = kDepth * kWeightChunks / kThreadCount;
  static_assert(kThreadCount % kScaledChunks == 0 && kThreadCount % kWeightChunks == 0 && kAcross % 2 == 0);

 public:
  static constexpr int kOperandBytes = kStages * kStageElements * int(sizeof(T));

 private:
  // Copies one slice of features after the other, tap by tap.
  struct Feed {
    const T* scaled;
    const T* weight;
    const ProductRows<kRows>& rows;
    const ProductTile& tile;
    const ProductShape& shape;
    TapWalk tap;
    const T* seen[kScaledPasses];  // by the tap, in this thread's rows; null beyond the image's edge
    int feature = 0;

    __device__ __forceinline__ Feed(const T* scaled, const T* weight, const ProductRows<kRows>& rows,
                                    const ProductTile& tile, const ProductShape& shape)
        : scaled(scaled + int64_t(tile.group) * shape.features + scaled_feature()),
          weight(weight + (int64_t(tile.group) * shape.features + weight_feature()) * shape.weight.sample +
                 tile.channel + weight_column()),
          rows(rows),
          tile(tile),
          shape(shape),
          tap(tile, shape) {
      look();
    }

    __device__ __forceinline__ static int scaled_feature() { return int(threadIdx.x) % kScaledChunks * kPack; }
    __device__ __forceinline__ static int scaled_row(int pass) {
      return int(threadIdx.x) / kScaledChunks + pass * (kThreadCount / kScaledChunks);
    }
    __device__ __forceinline__ static int weight_column() { return int(threadIdx.x) % kWeightChunks * kPack; }
    __device__ __forceinline__ static int weight_feature() { return int(threadIdx.x) / kWeightChunks; }

    __device__ __forceinline__ void look() {
#pragma unroll
      for (int pass = 0; pass < kScaledPasses; ++pass) {
        const int row = scaled_row(pass);
        const bool there = tap.sees(rows.position[0][row], rows.position[1][row], shape);
        seen[pass] = there ? scaled + rows.scaled[row] + tap.scaled : nullptr;
      }
    }

    __device__ __forceinline__ void next(T* stage) {
#pragma unroll
      for (int pass = 0; pass < kScaledPasses; ++pass) {
        const bool there = seen[pass] && feature + scaled_feature() < shape.features;
        copy_async(stage + scaled_row(pass) * kScaledPitch + scaled_feature(), there ? seen[pass] + feature : scaled,
                   there);
      }
      T* weights = stage + kRows * kScaledPitch + weight_feature() * kWeightPitch + weight_column();
      const T* from = weight + feature * shape.weight.sample + tap.weight;
#pragma unroll
      for (int pass = 0; pass < kWeightPasses; ++pass) {
        constexpr int kStep = kThreadCount / kWeightChunks;
        const bool there = weight_column() < tile.columns && feature + weight_feature() + pass * kStep < shape.features;
        copy_async(weights + pass * kStep * kWeightPitch, there ? from + pass * kStep * shape.weight.sample : weight,
                   there);
      }
      feature += kDepth;
      if (feature >= shape.features) {
        feature = 0;
        tap.next(tile, shape);
        look();
      }
    }
  };

  // The factors of one instruction's depth, from feature `depth` of the slice on.
  __device__ __forceinline__ static void load_factors(const T* stage, int depth, uint32_t (&a)[kDown][4],
                                                      uint32_t (&b)[kAcross][2]) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const T* scaled = stage + (warp / kWarpsAcross * kWarpRows + lane % 16) * kScaledPitch + depth + lane / 16 * kPack;
    const T* weight = stage + kRows * kScaledPitch + warp % kWarpsAcross * kWarpColumns;
#pragma unroll
    for (int i = 0; i < kDown; ++i) load_matrices(a[i], scaled + i * 16 * kScaledPitch);
    if constexpr (sizeof(T) == 2) {
      weight += (depth + lane % 16) * kWeightPitch + lane / 16 * 8;
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        uint32_t pair[4];
        load_matrices_transposed(pair, weight + j * 8);
        b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
      }
    } else {
      weight += (depth + lane % 4) * kWeightPitch + lane / 4;
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        b[j][0] = round_factor(bits_of(weight[j * 8]));
        b[j][1] = round_factor(bits_of(weight[4 * kWeightPitch + j * 8]));
      }
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) a[i][k] = round_factor(a[i][k]);
      }
    }
  }

 public:
  __device__ __forceinline__ static void run(const T* scaled, const T* weight, unsigned char* memory, float* values,
                                             const ProductRows<kRows>& rows, const ProductTile& tile,
                                             const ProductShape& shape) {
    T* stages = reinterpret_cast<T*>(memory);
    Feed feed(scaled, weight, rows, tile, shape);
    const int slices = tile.axis[0].taps * tile.axis[1].taps * ((shape.features + kDepth - 1) / kDepth);
    float sums[kDown][kAcross][4] = {};
#pragma unroll
    for (int slice = 0; slice < kStages - 1; ++slice) {
      if (slice < slices) feed.next(stages + slice * kStageElements);
      copy_async_commit();
    }
    int stage = 0, free_stage = kStages - 1;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
      copy_async_wait<kStages - 2>();
      // All copies of this slice are here, and nobody reads the stage of the one before any more.
      __syncthreads();
      if (slice + kStages - 1 < slices) feed.next(stages + free_stage * kStageElements);
      copy_async_commit();
#pragma unroll
      for (int depth = 0; depth < kDepth; depth += kFactorDepth) {
        uint32_t a[kDown][4], b[kAcross][2];
        load_factors(stages + stage * kStageElements, depth, a, b);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
#pragma unroll
          for (int j = 0; j < kAcross; ++j) multiply<T>(sums[i][j], a[i], b[j]);
        }
      }
      free_stage = stage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }

    __syncthreads();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    values += (warp / kWarpsAcross * kWarpRows + lane / 4) * values_pitch<TensorLoop> +
              warp % kWarpsAcross * kWarpColumns + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        float* at = values + i * 16 * values_pitch<TensorLoop> + j * 8;
        *reinterpret_cast<Pack<float, 2>*>(at) = {sums[i][j][0], sums[i][j][1]};
        *reinterpret_cast<Pack<float, 2>*>(at + 8 * values_pitch<TensorLoop>) = {sums[i][j][2], sums[i][j][3]};
      }
    }
  }
};

// The more products a warp makes of the factors it has loaded, the better: 64 by 32 sums are what its registers hold.
// Small tiles keep all multiprocessors busy where there is little to do.
template <class T>
using LargeTile = TensorLoop<T, 128, 128, 2, 4>;
template <class T>
using TallTile = TensorLoop<T, 128, 64, 2, 2>;
template <class T>
using SmallTile = TensorLoop<T, 64, 64, 2, 2>;

}  // namespace pxp::cuda
