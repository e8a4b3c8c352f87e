#include "../kernels/layer_norm.cuh"

#include "../launch.cuh"
#include "../layer_norm_check.h"

namespace pxp::cuda {
namespace {

template <class T, int V>
void launch(const LayerNormTensors& t, Tensor& result, double eps, cudaStream_t stream) {
  using C = Compute<T>;
  const T* carry = static_cast<const T*>(t.carry.const_data_ptr());
  const T* output = static_cast<const T*>(t.output.const_data_ptr());
  const C* rstd = static_cast<const C*>(t.rstd.const_data_ptr());
  const C* weight = t.weight ? static_cast<const C*>(t.weight->const_data_ptr()) : nullptr;
  const T* residual = t.residual ? static_cast<const T*>(t.residual->const_data_ptr()) : nullptr;
  const T* join = t.join ? static_cast<const T*>(t.join->const_data_ptr()) : nullptr;
  T* written = static_cast<T*>(result.mutable_data_ptr());
  // A block per row where a warp would go round more than 8 times.
  if (t.columns > 8 * kWarp * V) {
    layer_norm_rows<T, V, kThreads><<<blocks_for(t.rows, 1), kThreads, 0, stream>>>(
        carry, output, rstd, weight, residual, join, written, t.rows, t.columns, eps);
  } else {
    layer_norm_rows<T, V, kWarp><<<blocks_for(t.rows, kThreads / kWarp), kThreads, 0, stream>>>(
        carry, output, rstd, weight, residual, join, written, t.rows, t.columns, eps);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void run(const LayerNormTensors& t, Tensor& result, double eps) {
  if (t.rows == 0) return;
  const auto address = [](const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; };
  const cudaStream_t stream = current_stream(t.carry);
  for_type(t.carry.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const bool packs = aligned({t.carry.const_data_ptr(), t.output.const_data_ptr(), address(t.residual),
                                address(t.join), result.const_data_ptr()},
                               {t.columns}, sizeof(T));
    packs ? launch<T, kVector<T>>(t, result, eps, stream) : launch<T, 1>(t, result, eps, stream);
  });
}

Tensor layer_norm(const Tensor& carry, const Tensor& output, const Tensor& rstd, std::optional<Tensor> weight,
                  std::optional<Tensor> residual, double eps, std::optional<Tensor> join) {
  const DeviceGuard guard(carry.get_device_index());
  const LayerNormTensors t = prepare_layer_norm(carry, output, rstd, weight, residual, join, eps);
  Tensor result = torch::stable::new_empty(carry, carry.sizes());
  run(t, result, eps);
  return result;
}

void layer_norm_(const Tensor& carry, const Tensor& output, const Tensor& rstd, std::optional<Tensor> weight,
                 Tensor residual, double eps, std::optional<Tensor> join) {
  const DeviceGuard guard(carry.get_device_index());
  check_apart("layer_norm_", "residual", residual);
  LayerNormTensors t = prepare_layer_norm(carry, output, rstd, weight, residual, join, eps);
  run(t, *t.residual, eps);
  if (!residual.is_contiguous()) torch::stable::copy_(residual, *t.residual);
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) {
  m.impl("layer_norm", TORCH_BOX(&pxp::cuda::layer_norm));
  m.impl("layer_norm_", TORCH_BOX(&pxp::cuda::layer_norm_));
}
