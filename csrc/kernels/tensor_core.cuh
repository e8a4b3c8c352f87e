// The instructions of tensor cores and of copies that run beside them (sm_80 and later): PTX for nvcc, and for the host
// simulator a lane-by-lane account of what the PTX manual says they do.
#pragma once

#include "device.cuh"

#ifndef __CUDACC__
#include "simulated_tensor_core.h"
#endif

namespace pxp::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ unsigned shared_address(const void* at) { return unsigned(__cvta_generic_to_shared(at)); }

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Starts to copy 16 bytes to shared memory; zeros, and nothing is read, where there is no `source`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool source) {
  const int bytes = source ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits for this thread's copies but those of its last `kPending` groups.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and receives two
// neighbours of its row (transposed: of its column) l / 4 in each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

#define PXP_MULTIPLY(shape, type)                                       \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type  \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "              \
               "{%8, %9}, {%0, %1, %2, %3};\n"                          \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// sum (16x8, float32) += a (16x16, or 16x8 for float32) * b. Float32 factors must have been rounded by `round_factor`.
template <class T>
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2]) {
  PXP_MULTIPLY("m16n8k16", "bf16");
}
template <>
__device__ __forceinline__ void multiply<__half>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PXP_MULTIPLY("m16n8k16", "f16");
}
template <>
__device__ __forceinline__ void multiply<float>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PXP_MULTIPLY("m16n8k8", "tf32");
}
#undef PXP_MULTIPLY

// To nearest, ties away from zero. Left to itself the tensor core cuts off, which makes every product a little smaller.
__device__ __forceinline__ uint32_t round_factor(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

#else

inline unsigned char* dynamic_shared_memory() { return simulator::dynamic_shared_memory(); }
inline void copy_async(void* to, const void* from, bool source) { simulator::copy_async(to, from, 16, source); }
inline void copy_async_commit() { simulator::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  simulator::copy_async_wait(kPending);
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { simulator::load_matrices(to, row, false); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) { simulator::load_matrices(to, row, true); }

template <class T>
void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simulator::multiply<T>(sum, a, b, [](T x) { return widen(x); });
}
template <>
inline void multiply<float>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simulator::multiply<float>(sum, a, b, [](float x) { return float_of(bits_of(x) & ~0x1fffu); });
}
inline uint32_t round_factor(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;  // the one NaN that the instruction knows
  return (bits + 0x1000u) & ~0x1fffu;
}

#endif

}  // namespace pxp::cuda
