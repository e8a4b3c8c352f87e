// Small kernels with one fault each, which the simulator or the sanitizers must notice, and the same without the fault.
#include <map>

#include "harness.h"
#include "kernels/device.cuh"

using namespace pxp::cuda;

namespace {

// Passes values from thread to thread through shared memory: right only with both barriers.
__global__ void rotate(float* data, int64_t steps, bool after_writing, bool after_reading) {
  __shared__ float shared[kThreads];
  float value = data[threadIdx.x];
  for (int64_t step = 0; step < steps; ++step) {
    shared[threadIdx.x] = value;
    if (after_writing) __syncthreads();
    value = shared[(threadIdx.x + 33) % kThreads];
    if (after_reading) __syncthreads();
  }
  data[threadIdx.x] = value;
}

// Sums over the block, again and again. The shuffles keep the warps in step, so that it takes a warp that runs ahead to
// show that the second barrier is missing.
__global__ void sum_up(float* data, int64_t steps, bool after_writing, bool after_reading) {
  __shared__ float shared[kThreads / kWarp];
  float value = data[threadIdx.x];
  for (int64_t step = 0; step < steps; ++step) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
    if (after_writing) __syncthreads();
    float total = 0;
    for (int i = 0; i < kThreads / kWarp; ++i) total += shared[i];
    if (after_reading) __syncthreads();
    value = total / 256 + float(threadIdx.x);
  }
  data[threadIdx.x] = value;
}

__global__ void two_barriers(float* data, int64_t) {
  if (threadIdx.x < 100) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  data[threadIdx.x] = 0;
}

__global__ void barrier_left_out(float* data, int64_t) {
  if (threadIdx.x < 128) __syncthreads();
  data[threadIdx.x] = 0;
  __syncthreads();
}

__global__ void lane_ends(float* data, int64_t) {
  if (threadIdx.x % kWarp == 5) return;
  data[threadIdx.x] = __shfl_xor_sync(0xffffffffu, data[threadIdx.x], 1);
}

__global__ void lane_waits_elsewhere(float* data, int64_t) {
  if (threadIdx.x % kWarp == 5) {
    __syncthreads();
    return;
  }
  data[threadIdx.x] = __shfl_xor_sync(0xffffffffu, data[threadIdx.x], 1);
  __syncthreads();
}

__global__ void lanes_in_two_shuffles(float* data, int64_t) {
  if (threadIdx.x % kWarp < 16) {
    data[threadIdx.x] = __shfl_xor_sync(0xffffffffu, data[threadIdx.x], 1);
  } else {
    data[threadIdx.x] = __shfl_xor_sync(0xffffffffu, data[threadIdx.x], 1);
  }
}

__global__ void half_a_mask(float* data, int64_t) {
  data[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, data[threadIdx.x], 1);
}

__global__ void whole_warps(float* data, int64_t) {
  data[threadIdx.x] = __shfl_xor_sync(0xffffffffu, data[threadIdx.x], 1);
}

// The second block reads what nobody wrote there in its time.
__global__ void shared_of_the_block_before(float* data, int64_t) {
  __shared__ float shared[kThreads];
  if (blockIdx.x == 0) shared[threadIdx.x] = 1;
  __syncthreads();
  data[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x];
}

__global__ void store_between_packs(float* data, int64_t) {
  store<float, 4>(data + 4 * threadIdx.x + 1, Pack<float, 4>{});
}

__global__ void load_between_packs(float* data, int64_t) {
  data[threadIdx.x] = load<float, 4>(data + threadIdx.x).at[0];
}

__global__ void read_behind(float* data, int64_t n) {
  if (threadIdx.x == 0) data[0] = data[n];
}

__global__ void write_before(float* data, int64_t) {
  if (threadIdx.x == 0) data[-1] = 0;
}

__global__ void index_of_32_bits(float* data, int64_t n) {
  const int rows = int(n) * 65536, row = threadIdx.x;
  data[0] = float(row * rows);
}

__global__ void outside_of_shared(float* data, int64_t n) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x + n] = data[0];
  data[0] = shared[0];
}

}  // namespace

extern "C" int exchange(float* data, int64_t sums, int64_t steps, int64_t after_writing, int64_t after_reading) {
  return harness::guarded([&] {
    simulator::launch(sums ? sum_up : rotate, {1}, kThreads, data, steps, after_writing != 0, after_reading != 0);
  });
}

// `data` has n elements; where every thread has one, n is kThreads, or twice that for two blocks.
extern "C" int fault(const char* name, float* data, int64_t n) {
  const std::map<std::string, void (*)(float*, int64_t)> kernels = {
      {"two barriers", two_barriers},
      {"barrier left out", barrier_left_out},
      {"lane ends", lane_ends},
      {"lane waits elsewhere", lane_waits_elsewhere},
      {"lanes in two shuffles", lanes_in_two_shuffles},
      {"half a mask", half_a_mask},
      {"whole warps", whole_warps},
      {"shared of the block before", shared_of_the_block_before},
      {"store between packs", store_between_packs},
      {"load between packs", load_between_packs},
      {"read behind", read_behind},
      {"write before", write_before},
      {"index of 32 bits", index_of_32_bits},
      {"outside of shared", outside_of_shared},
  };
  return harness::guarded([&] {
    simulator::launch(kernels.at(name), {n == 2 * kThreads ? 2u : 1u}, kThreads, data, n);
  });
}
