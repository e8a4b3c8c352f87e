// `mask_` on the GPU: many parameters in one launch, described by a table among its arguments. Arguments are
// copied at the launch, also into a graph that is being captured; a table in memory would have to outlive the graph.
#pragma once

#include "device.cuh"

namespace pxp::cuda {

constexpr int kMaskDims = 4;

// One parameter: `slices` of `elements` elements, `slice_stride` apart, each a strided array of up to kMaskDims
// dimensions.
struct MaskEntry {
  void* data;
  const bool* keep;
  int64_t slices, slice_stride;
  uint32_t elements;
  uint32_t sizes[kMaskDims];  // innermost first; past the last dimension 1
  int64_t strides[kMaskDims];
  int32_t element_size;
};

constexpr int kMaskEntries = 40;
struct MaskTable {
  MaskEntry at[kMaskEntries];
};
static_assert(sizeof(MaskTable) <= 4096, "what a kernel's arguments may take");

template <class T>
__device__ __forceinline__ void zero_slice(const MaskEntry& entry, int64_t slice) {
  T* data = static_cast<T*>(entry.data) + slice * entry.slice_stride;
  for (int64_t i = threadIdx.x; i < entry.elements; i += kThreads) {
    uint32_t index = uint32_t(i);
    int64_t offset = 0;
#pragma unroll
    for (int d = 0; d < kMaskDims; ++d) {
      offset += int64_t(index % entry.sizes[d]) * entry.strides[d];
      index /= entry.sizes[d];
    }
    data[offset] = T(0);
  }
}

// grid: (any, parameters). The blocks of a column share the slices of its parameter. T is an unsigned integer as wide
// as an element: zero has one bit pattern.
__global__ void __launch_bounds__(kThreads, kBlocks) mask_slices(const MaskTable table) {
  const MaskEntry entry = table.at[blockIdx.y];
  for (int64_t slice = blockIdx.x; slice < entry.slices; slice += gridDim.x) {
    if (entry.keep[slice]) continue;
    switch (entry.element_size) {
      case 8: zero_slice<uint64_t>(entry, slice); break;
      case 4: zero_slice<uint32_t>(entry, slice); break;
      default: zero_slice<uint16_t>(entry, slice);
    }
  }
}

}  // namespace pxp::cuda
