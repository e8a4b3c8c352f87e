#include <algorithm>
#include <vector>

#include "common.h"

namespace pxp::cpu {
namespace {

// A strided array without its masked dimension, largest stride first, neighbours joined.
struct Walk {
  std::vector<int64_t> sizes, strides;

  Walk(const Tensor& parameter, int64_t dim) {
    std::vector<std::pair<int64_t, int64_t>> order;
    for (int64_t d = 0; d < parameter.dim(); ++d) {
      if (d != dim && parameter.size(d) != 1) order.emplace_back(parameter.stride(d), parameter.size(d));
    }
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (const auto& [stride, size] : order) {
      if (!sizes.empty() && strides.back() == stride * size) {
        sizes.back() *= size;
        strides.back() = stride;
      } else {
        sizes.push_back(size);
        strides.push_back(stride);
      }
    }
  }

  int64_t count() const {
    int64_t product = 1;
    for (int64_t size : sizes) product *= size;
    return product;
  }

  int64_t offset(int64_t index) const {
    int64_t result = 0;
    for (size_t d = sizes.size(); d-- > 0;) {
      result += index % sizes[d] * strides[d];
      index /= sizes[d];
    }
    return result;
  }
};

// T is an unsigned integer as wide as an element: zero has one bit pattern, and nothing is computed with.
template <class T>
void mask_one(T* data, const Tensor& parameter, const bool* keep, int64_t dim) {
  const int64_t size = parameter.size(dim), stride = parameter.stride(dim);
  Walk walk(parameter, dim);
  // Runs of neighbouring elements, within a slice or across the slices.
  const bool whole_runs = !walk.sizes.empty() && walk.strides.back() == 1;
  const int64_t run = whole_runs ? walk.sizes.back() : 1;
  if (whole_runs) {
    walk.sizes.pop_back();
    walk.strides.pop_back();
  }
  torch::stable::parallel_for(0, walk.count(), grain(run * size), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      T* row = data + walk.offset(index);
      for (int64_t i = 0; i < size; ++i) {
        if (!keep[i]) std::fill_n(row + i * stride, run, T(0));
      }
    }
  });
}

void mask_(std::vector<Tensor> parameters, std::vector<Tensor> keep, std::vector<int64_t> dims) {
  check_mask(parameters, keep, dims);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& parameter = parameters[i];
    if (parameter.numel() == 0) continue;
    const Tensor dense = torch::stable::contiguous(keep[i]);
    const bool* flags = static_cast<const bool*>(dense.const_data_ptr());
    const int64_t dim = dims[i] < 0 ? dims[i] + parameter.dim() : dims[i];
    void* data = parameter.mutable_data_ptr();
    switch (parameter.element_size()) {
      case 8: mask_one(static_cast<uint64_t*>(data), parameter, flags, dim); break;
      case 4: mask_one(static_cast<uint32_t*>(data), parameter, flags, dim); break;
      default: mask_one(static_cast<uint16_t*>(data), parameter, flags, dim);
    }
  }
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("mask_", TORCH_BOX(&pxp::cpu::mask_)); }
