#include "../kernels/layer_norm.cuh"

#include "../launch.cuh"
#include "../layer_norm_check.h"

namespace pxp::cuda {
namespace {

template <class T, int V>
void launch(const LayerNormTensors& t, double eps, cudaStream_t stream) {
  using C = Compute<T>;
  const T* carry = static_cast<const T*>(t.carry.const_data_ptr());
  const T* output = static_cast<const T*>(t.output.const_data_ptr());
  const C* rstd = static_cast<const C*>(t.rstd.const_data_ptr());
  const C* weight = t.weight ? static_cast<const C*>(t.weight->const_data_ptr()) : nullptr;
  const T* residual = t.residual ? static_cast<const T*>(t.residual->const_data_ptr()) : nullptr;
  T* result = static_cast<T*>(t.result.mutable_data_ptr());
  // A block per row where a warp would go round more than 8 times.
  if (t.columns > 8 * kWarp * V) {
    layer_norm_rows<T, V, kThreads><<<blocks_for(t.rows, 1), kThreads, 0, stream>>>(
        carry, output, rstd, weight, residual, result, t.rows, t.columns, eps);
  } else {
    layer_norm_rows<T, V, kWarp><<<blocks_for(t.rows, kThreads / kWarp), kThreads, 0, stream>>>(
        carry, output, rstd, weight, residual, result, t.rows, t.columns, eps);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor layer_norm(const Tensor& carry, const Tensor& output, const Tensor& rstd, std::optional<Tensor> weight,
                  std::optional<Tensor> residual, double eps) {
  const DeviceGuard guard(carry.get_device_index());
  LayerNormTensors t = prepare_layer_norm(carry, output, rstd, weight, residual, eps);
  if (t.rows == 0) return t.result;
  const cudaStream_t stream = current_stream(carry);
  for_type(carry.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const bool packs = aligned({t.carry.const_data_ptr(), t.output.const_data_ptr(), t.result.const_data_ptr(),
                                t.residual ? t.residual->const_data_ptr() : nullptr},
                               {t.columns}, sizeof(T));
    packs ? launch<T, kVector<T>>(t, eps, stream) : launch<T, 1>(t, eps, stream);
  });
  return t.result;
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("layer_norm", TORCH_BOX(&pxp::cuda::layer_norm)); }
