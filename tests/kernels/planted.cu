// Kernels with the faults that test_sass.py must find, and kernels without them. Each is named after what it is.
#include "kernels/device.cuh"

using namespace pxp::cuda;

// Indexed by what only the GPU knows, an array cannot stay in registers.
extern "C" __global__ void local_memory(const float* in, float* out, const int* order) {
  float values[32];
  for (int i = 0; i < 32; ++i) values[i] = in[i * 32 + threadIdx.x];
  float sum = 0;
  for (int i = 0; i < 32; ++i) sum += values[order[i]] * float(i);
  out[threadIdx.x] = sum;
}

extern "C" __global__ void narrow_loads(const float* in, float* out) {
  Pack<float, 4> pack;
  for (int k = 0; k < 4; ++k) pack.at[k] = in[4 * threadIdx.x + k];
  store<float, 4>(out + 4 * threadIdx.x, pack);
}

extern "C" __global__ void narrow_stores(const float* in, float* out) {
  const Pack<float, 4> pack = load<float, 4>(in + 4 * threadIdx.x);
  for (int k = 0; k < 4; ++k) out[4 * threadIdx.x + k] = pack.at[k];
}

extern "C" __global__ void wide(const float* in, float* out) {
  store<float, 4>(out + 4 * threadIdx.x, load<float, 4>(in + 4 * threadIdx.x));
}

extern "C" __global__ void approximate_quotient(const float* in, float* out) {
  out[threadIdx.x] = __fdividef(in[threadIdx.x], in[threadIdx.x + 1]);
}

extern "C" __global__ void approximate_exponential(const float* in, float* out) {
  out[threadIdx.x] = __expf(in[threadIdx.x]);
}

extern "C" __global__ void exact_quotients(const float* in, float* out, int divisor) {
  out[threadIdx.x / divisor] = in[threadIdx.x] / in[threadIdx.x + 1] + 1.0f / in[threadIdx.x + 2];
}

extern "C" __global__ void long_division_in_loop(const int64_t* in, int64_t* out, int64_t n, int64_t divisor) {
  int64_t sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += in[i] / divisor;
  out[threadIdx.x] = sum;
}

extern "C" __global__ void long_division_before_loop(const int64_t* in, int64_t* out, int64_t n, int64_t divisor) {
  int64_t sum = 0;
  const int64_t start = n / divisor;
  for (int64_t i = start; i < n; i += kThreads) sum += in[i];
  out[threadIdx.x] = sum;
}

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// One tile of a matrix product as the tensor cores take it: through cp.async, ldmatrix and mma.sync.
extern "C" __global__ void product_on_tensor_cores(const __half* a, const __half* b, float* out) {
  __shared__ __align__(16) __half tile[2][16 * 16];
  const unsigned at = unsigned(__cvta_generic_to_shared(&tile[0][8 * threadIdx.x]));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(a + 8 * threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at + 512), "l"(b + 8 * threadIdx.x));
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  unsigned x[4], y[2];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(y[0]), "=r"(y[1])
               : "r"(at + 512));
  float c[4] = {};
  multiply(c, x, y);
  for (int k = 0; k < 4; ++k) out[4 * threadIdx.x + k] = c[k];
}

extern "C" __global__ void product_with_long_divisions(const int64_t* in, float* out, int64_t n, int64_t divisor) {
  float c[4] = {};
  unsigned a[4] = {threadIdx.x}, b[2] = {threadIdx.x};
  for (int64_t i = 0; i < n; ++i) {
    a[1] = unsigned(in[i] / divisor);
    multiply(c, a, b);
  }
  out[threadIdx.x] = c[0];
}

extern "C" __global__ void product_by_hand(const __half* a, const __half* b, float* out) {
  float sum = 0;
  for (int k = 0; k < 16; ++k) sum += __half2float(a[16 * threadIdx.x + k]) * __half2float(b[k]);
  out[threadIdx.x] = sum;
}
