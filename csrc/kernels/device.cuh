// What every kernel starts from: element types, the precision each is computed in, and 16-byte packs. Kernel headers
// hold device code on raw pointers and no torch; nvcc and the host simulator of tests/kernels read them unmodified.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "simulator.h"
#endif

#include "../formula.h"

namespace pxp::cuda {

constexpr int kThreads = 256;
// Blocks that a multiprocessor must be able to hold. Said aloud, it keeps ptxas from spilling for the sake of more.
constexpr int kBlocks = 4;
constexpr int kWarp = 32;

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(Compute<T> x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// V neighbouring elements, loaded and stored in one instruction: V is 1, or as many as make 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}
template <class T, int V>
__device__ __forceinline__ void store(T* to, const Pack<T, V>& pack) {
  if constexpr (sizeof(pack) == 16) {
    // Said in so many words: where the address is stepped along, the compiler forgets its alignment and stores in
    // pieces.
    uint4 whole;
    memcpy(&whole, &pack, sizeof whole);
    __stwb(reinterpret_cast<uint4*>(to), whole);
  } else {
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
  }
}

}  // namespace pxp::cuda
