#include "../kernels/mask.cuh"

#include <algorithm>
#include <utility>
#include <vector>

#include "../launch.cuh"

namespace pxp::cuda {
namespace {

// The dimensions of a slice, innermost first, neighbours joined.
void describe_slice(const Tensor& parameter, int64_t dim, MaskEntry& entry) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < parameter.dim(); ++d) {
    if (d != dim && parameter.size(d) != 1) dims.emplace_back(parameter.stride(d), parameter.size(d));
  }
  std::stable_sort(dims.begin(), dims.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  int64_t elements = 1;
  int used = 0;
  for (const auto& [stride, size] : dims) {
    elements *= size;
    if (used && entry.strides[used - 1] * entry.sizes[used - 1] == stride) {
      entry.sizes[used - 1] *= uint32_t(size);
      continue;
    }
    STD_TORCH_CHECK(used < kMaskDims, "mask_: a parameter is strided in more than ", kMaskDims + 1, " dimensions");
    entry.sizes[used] = uint32_t(size);
    entry.strides[used++] = stride;
  }
  STD_TORCH_CHECK(elements < (int64_t(1) << 32), "mask_: a slice of a parameter has more than 2^32 elements");
  entry.elements = uint32_t(elements);
  for (; used < kMaskDims; ++used) {
    entry.sizes[used] = 1;
    entry.strides[used] = 0;
  }
}

void mask_(std::vector<Tensor> parameters, std::vector<Tensor> keep, std::vector<int64_t> dims) {
  check_mask(parameters, keep, dims);
  if (parameters.empty()) return;
  const DeviceGuard guard(parameters[0].get_device_index());
  std::vector<MaskEntry> entries;
  std::vector<Tensor> dense;  // keeps what the entries point to alive until the kernels are in the stream
  int64_t most_slices = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& parameter = parameters[i];
    if (parameter.numel() == 0) continue;
    dense.push_back(torch::stable::contiguous(keep[i]));
    const int64_t dim = dims[i] < 0 ? dims[i] + parameter.dim() : dims[i];
    MaskEntry entry{};
    entry.data = parameter.mutable_data_ptr();
    entry.keep = static_cast<const bool*>(dense.back().const_data_ptr());
    entry.slices = parameter.size(dim);
    entry.slice_stride = parameter.stride(dim);
    entry.element_size = int32_t(parameter.element_size());
    describe_slice(parameter, dim, entry);
    entries.push_back(entry);
    most_slices = std::max(most_slices, entry.slices);
  }
  const cudaStream_t stream = current_stream(parameters[0]);
  for (size_t first = 0; first < entries.size(); first += kMaskEntries) {
    const size_t count = std::min<size_t>(kMaskEntries, entries.size() - first);
    MaskTable table{};
    std::copy_n(entries.begin() + first, count, table.at);
    const dim3 grid(unsigned(std::min<int64_t>(most_slices, 256)), unsigned(count));
    mask_slices<<<grid, kThreads, 0, stream>>>(table);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("mask_", TORCH_BOX(&pxp::cuda::mask_)); }
