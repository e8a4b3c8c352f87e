// What the CUDA registrations share: the stream, grid sizes, and the element type as a template argument.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>

#include "check.h"
#include "kernels/device.cuh"

namespace pxp::cuda {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  STD_TORCH_CHECK(blocks <= 0x7fffffff, "pxp_fast: a tensor is too large for one kernel launch");
  return static_cast<unsigned>(blocks);
}

// The smallest power of two of lanes, up to a warp, that reads `columns` columns at once.
inline int lanes_for(int64_t columns, int vector) {
  int lanes = 1;
  while (lanes < kWarp && lanes * vector < columns) lanes *= 2;
  return lanes;
}

// Whether every address is a multiple of 16 bytes: pointers, and steps counted in elements.
inline bool aligned(std::initializer_list<const void*> pointers, std::initializer_list<int64_t> steps, size_t size) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return false;
  }
  for (int64_t step : steps) {
    if (step * int64_t(size) % 16) return false;
  }
  return true;
}

template <class T>
struct Type {
  using type = T;
};

// Calls `body` with Type<T>{} for the CUDA element type of a tensor.
template <class Body>
void for_type(ScalarType type, Body&& body) {
  switch (type) {
    case ScalarType::Double: return body(Type<double>{});
    case ScalarType::Float: return body(Type<float>{});
    case ScalarType::BFloat16: return body(Type<__nv_bfloat16>{});
    case ScalarType::Half: return body(Type<__half>{});
    default: STD_TORCH_CHECK(false, "pxp_fast: no kernel for this dtype");
  }
}

}  // namespace pxp::cuda
