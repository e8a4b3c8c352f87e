#include "../kernels/accumulate.cuh"

#include "../launch.cuh"

namespace pxp::cuda {
namespace {

void accumulate_(Tensor totals, const Tensor& sums) {
  check_accumulate(totals, sums);
  const DeviceGuard guard(totals.get_device_index());
  const Tensor dense = torch::stable::contiguous(sums);
  const int64_t samples = sums.size(1), units = sums.size(2);
  if (units == 0) return;
  const cudaStream_t stream = current_stream(totals);
  double* out = static_cast<double*>(totals.mutable_data_ptr());
  if (sums.scalar_type() == ScalarType::Double) {
    accumulate_units<double><<<blocks_for(units, kThreads), kThreads, 0, stream>>>(
        out, static_cast<const double*>(dense.const_data_ptr()), samples, units);
  } else {
    accumulate_units<float><<<blocks_for(units, kThreads), kThreads, 0, stream>>>(
        out, static_cast<const float*>(dense.const_data_ptr()), samples, units);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("accumulate_", TORCH_BOX(&pxp::cuda::accumulate_)); }
