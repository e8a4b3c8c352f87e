#include "../kernels/accumulate.cuh"

#include <algorithm>

#include "../launch.cuh"

namespace pxp::cuda {
namespace {

constexpr int64_t kMostRows = 65535;  // of blocks: a grid's second dimension ends there

template <class T>
void launch(Tensor& totals, const Tensor& sums, const Tensor* labels) {
  const int64_t samples = sums.size(1), units = sums.size(2);
  const unsigned blocks = blocks_for(units, kThreads);
  const cudaStream_t stream = current_stream(totals);
  double* out = static_cast<double*>(totals.mutable_data_ptr());
  const T* in = static_cast<const T*>(sums.const_data_ptr());
  const int64_t* label = labels ? static_cast<const int64_t*>(labels->const_data_ptr()) : nullptr;
  if (totals.dim() == 3) {
    const dim3 grid(blocks, unsigned(std::min(samples, kMostRows)));
    accumulate_classes<T><<<grid, kThreads, 0, stream>>>(out, in, label, totals.size(0), samples, units);
  } else {
    accumulate_units<T><<<blocks, kThreads, 0, stream>>>(out, in, label, samples, units);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void accumulate_(Tensor totals, const Tensor& sums, std::optional<Tensor> labels) {
  check_accumulate(totals, sums, labels);
  if (sums.size(1) == 0 || sums.size(2) == 0) return;
  const DeviceGuard guard(totals.get_device_index());
  const Tensor dense = torch::stable::contiguous(sums);
  if (labels) labels = torch::stable::contiguous(*labels);
  const Tensor* label = labels ? &*labels : nullptr;
  if (sums.scalar_type() == ScalarType::Double) {
    launch<double>(totals, dense, label);
  } else {
    launch<float>(totals, dense, label);
  }
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("accumulate_", TORCH_BOX(&pxp::cuda::accumulate_)); }
