#include "../kernels/add_relu.cuh"

#include "../launch.cuh"

namespace pxp::cuda {
namespace {

template <class T, int V>
void launch(const Tensor& a, const Tensor& b, Tensor& result) {
  add_relu_elements<T, V><<<blocks_for(a.numel() / V, kThreads), kThreads, 0, current_stream(a)>>>(
      static_cast<const T*>(a.const_data_ptr()), static_cast<const T*>(b.const_data_ptr()),
      static_cast<T*>(result.mutable_data_ptr()), a.numel());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor add_relu(const Tensor& a, const Tensor& b) {
  check_add_relu(a, b);
  const DeviceGuard guard(a.get_device_index());
  Tensor result = torch::stable::empty_like(a);
  if (a.numel() == 0) return result;
  const Tensor first = laid_out_like(a, result), second = laid_out_like(b, result);
  for_type(a.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const bool packs = aligned({first.const_data_ptr(), second.const_data_ptr(), result.const_data_ptr()}, {a.numel()},
                               sizeof(T));
    packs ? launch<T, kVector<T>>(first, second, result) : launch<T, 1>(first, second, result);
  });
  return result;
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("add_relu", TORCH_BOX(&pxp::cuda::add_relu)); }
