#include "../kernels/select.cuh"

#include "../launch.cuh"

namespace pxp::cuda {
namespace {

Tensor select(const Tensor& scores, int64_t k, bool largest) {
  check_select(scores, k);
  STD_TORCH_CHECK(scores.numel() < (int64_t(1) << 32), "select: fewer than 2^32 scores can be ranked on a GPU, not ",
                  scores.numel());
  const DeviceGuard guard(scores.get_device_index());
  const int64_t n = scores.numel();
  Tensor chosen = torch::stable::new_zeros(scores, {n}, ScalarType::Bool);
  if (k == 0) return chosen;
  const Tensor dense = torch::stable::contiguous(scores);
  const cudaStream_t stream = current_stream(scores);
  for_type(scores.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    radix_select<T><<<1, kSelectThreads, 0, stream>>>(static_cast<const T*>(dense.const_data_ptr()),
                                                      static_cast<bool*>(chosen.mutable_data_ptr()), n, k, largest);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return chosen;
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("select", TORCH_BOX(&pxp::cuda::select)); }
