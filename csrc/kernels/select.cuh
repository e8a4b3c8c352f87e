// `select` on the GPU: radix selection by one block. Byte by byte from the top, the k-th smallest key is narrowed down
// by counting; integer counts come out the same in any order.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace pxp::cuda {

constexpr int kSelectThreads = 1024;

template <class T>
__device__ __forceinline__ auto key_of(T score, bool largest) {
  const auto key = order_key(widen(score));
  return largest ? decltype(key)(~key) : key;
}

// grid: 1, block: kSelectThreads. 1 <= k <= n < 2^32: shared memory counts in hardware with 32 bits only.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    radix_select(const T* scores, bool* chosen, int64_t n, int64_t k, bool largest) {
  using Key = std::decay_t<decltype(order_key(widen(T())))>;
  __shared__ unsigned counts[256];
  __shared__ unsigned long long before[kSelectThreads];
  __shared__ Key shared_prefix;
  __shared__ unsigned long long shared_wanted;
  const int thread = threadIdx.x;

  Key prefix = 0, known = 0;
  unsigned long long wanted = k;  // the rank, from 1, of the threshold among the keys that share `prefix`
  for (int shift = int(sizeof(Key)) * 8 - 8; shift >= 0; shift -= 8) {
    if (thread < 256) counts[thread] = 0;
    __syncthreads();
    for (int64_t i = thread; i < n; i += kSelectThreads) {
      const Key key = key_of(scores[i], largest);
      if ((key & known) == prefix) atomicAdd(&counts[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (thread == 0) {
      Key digit = 0;
      while (counts[digit] < wanted) wanted -= counts[digit++];
      shared_prefix = prefix | digit << shift;
      shared_wanted = wanted;
    }
    __syncthreads();
    prefix = shared_prefix;
    wanted = shared_wanted;
    known |= Key(255) << shift;
  }

  // `prefix` is the threshold, and `wanted` of the keys equal to it belong: those of lowest index. Every thread takes a
  // stretch of neighbours and learns how many equal keys lie before it.
  const int64_t stretch = (n + kSelectThreads - 1) / kSelectThreads;
  const int64_t first = thread * stretch, last = first + stretch < n ? first + stretch : n;
  unsigned long long equal = 0;
  for (int64_t i = first; i < last; ++i) equal += key_of(scores[i], largest) == prefix;
  before[thread] = equal;
  __syncthreads();
  for (int distance = 1; distance < kSelectThreads; distance *= 2) {
    const unsigned long long left = thread >= distance ? before[thread - distance] : 0;
    __syncthreads();
    before[thread] += left;
    __syncthreads();
  }
  unsigned long long rank = before[thread] - equal;
  for (int64_t i = first; i < last; ++i) {
    const Key key = key_of(scores[i], largest);
    chosen[i] = key < prefix || (key == prefix && rank++ < wanted);
  }
}

}  // namespace pxp::cuda
