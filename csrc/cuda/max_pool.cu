#include "../kernels/max_pool.cuh"

#include <algorithm>

#include "../launch.cuh"
#include "../max_pool_check.h"

namespace pxp::cuda {
namespace {

using Pair = std::vector<int64_t>;

template <bool kNumbers, class T, class Result>
void launch_winners(const T* value, Result* result, const MaxPoolShape& shape, bool packs, cudaStream_t stream) {
  const int64_t items = shape.samples * shape.axes[0].pooled * shape.axes[1].pooled * shape.channels;
  if (packs) {
    constexpr int V = kVector<T>;
    max_pool_winners<T, V, kNumbers><<<blocks_for(items / V, kThreads), kThreads, 0, stream>>>(value, result, shape);
  } else {
    max_pool_winners<T, 1, kNumbers><<<blocks_for(items, kThreads), kThreads, 0, stream>>>(value, result, shape);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor max_pool(const Tensor& value, Pair kernel, Pair stride, Pair padding, Pair dilation, bool ceil_mode) {
  const DeviceGuard guard(value.get_device_index());
  MaxPoolTensors t = prepare_max_pool(value, kernel, stride, padding, dilation, ceil_mode);
  if (t.result.numel() == 0) return t.result;
  for_type(value.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const T* from = static_cast<const T*>(t.value.const_data_ptr());
    T* to = static_cast<T*>(t.result.mutable_data_ptr());
    const bool packs = aligned({from, to}, {t.shape.channels}, sizeof(T));
    launch_winners<false>(from, to, t.shape, packs, current_stream(value));
  });
  return t.result;
}

template <class T, int V>
void launch_carry(const MaxPoolCarry<T>& at, const MaxPoolShape& shape, cudaStream_t stream) {
  const int width = lanes_for(shape.channels, V);
  const int64_t tiles = (shape.channels + width * V - 1) / (width * V);
  max_pool_carry<T, V>
      <<<blocks_for(shape.samples * at.blocks * tiles, 1), kThreads, 0, stream>>>(at, shape, width, tiles);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
void run_as(MaxPoolTensors& t, std::optional<double> eps, cudaStream_t stream) {
  using C = Compute<T>;
  const MaxPoolShape& shape = t.shape;
  const int64_t positions = int64_t(shape.axes[0].size) * shape.axes[1].size;
  Tensor winners = torch::stable::new_empty(*t.carry, {t.carry->numel()}, ScalarType::Short);
  MaxPoolCarry<T> at{};
  at.carry = static_cast<const T*>(t.carry->const_data_ptr());
  at.winners = static_cast<const uint16_t*>(winners.const_data_ptr());
  at.value = static_cast<const T*>(t.value.const_data_ptr());
  at.rest = t.rest ? static_cast<const T*>(t.rest->const_data_ptr()) : nullptr;
  at.result = static_cast<T*>(t.result.mutable_data_ptr());
  at.stabilizes = eps.has_value();
  at.eps = eps.value_or(0);
  // The shape alone decides the blocks, so the same tensors always add in the same order.
  at.block_positions = std::clamp<int64_t>(16384 / shape.channels, 16, 4096);
  at.blocks = (positions + at.block_positions - 1) / at.block_positions;
  Tensor partials;
  if (t.sums) {
    partials = torch::stable::new_empty(*t.sums, {2 * at.blocks * shape.samples * shape.channels});
    at.partials = static_cast<C*>(partials.mutable_data_ptr());
  }
  const bool packs = aligned({at.carry, at.value, at.rest, at.result}, {shape.channels}, sizeof(T));
  launch_winners<true>(at.value, static_cast<uint16_t*>(winners.mutable_data_ptr()), shape, packs, stream);
  packs ? launch_carry<T, kVector<T>>(at, shape, stream) : launch_carry<T, 1>(at, shape, stream);
  if (!t.sums) return;
  max_pool_combine<C><<<blocks_for(2 * shape.samples * shape.channels, kThreads), kThreads, 0, stream>>>(
      at.partials, static_cast<C*>(t.sums->mutable_data_ptr()), t.sums->stride(0), t.sums->stride(1), shape, at.blocks);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void run(MaxPoolTensors& t, std::optional<double> eps) {
  if (t.value.numel() == 0) return;
  for_type(t.value.scalar_type(),
           [&](auto type) { run_as<typename decltype(type)::type>(t, eps, current_stream(t.value)); });
}

Tensor max_pool_epsilon(const Tensor& carry, const Tensor& value, std::optional<Tensor> rest,
                        std::optional<Tensor> sums, Pair kernel, Pair stride, Pair padding, Pair dilation,
                        bool ceil_mode, std::optional<double> eps) {
  const DeviceGuard guard(value.get_device_index());
  MaxPoolTensors t =
      prepare_max_pool_epsilon(carry, value, rest, sums, kernel, stride, padding, dilation, ceil_mode, eps, false);
  run(t, eps);
  return t.result;
}

void max_pool_epsilon_(Tensor value, const Tensor& carry, std::optional<Tensor> rest, std::optional<Tensor> sums,
                       Pair kernel, Pair stride, Pair padding, Pair dilation, bool ceil_mode,
                       std::optional<double> eps) {
  const DeviceGuard guard(value.get_device_index());
  MaxPoolTensors t =
      prepare_max_pool_epsilon(carry, value, rest, sums, kernel, stride, padding, dilation, ceil_mode, eps, true);
  run(t, eps);
  if (t.result.const_data_ptr() != value.const_data_ptr()) torch::stable::copy_(value, t.result);
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) {
  m.impl("max_pool", TORCH_BOX(&pxp::cuda::max_pool));
  m.impl("max_pool_epsilon", TORCH_BOX(&pxp::cuda::max_pool_epsilon));
  m.impl("max_pool_epsilon_", TORCH_BOX(&pxp::cuda::max_pool_epsilon_));
}
