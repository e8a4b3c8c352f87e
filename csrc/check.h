// What every kernel of an operator checks before it touches memory, CPU and CUDA alike. The typed Python functions
// check the same with longer messages; these guard direct calls of torch.ops.pxp_fast.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "formula.h"

namespace pxp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_supported(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline void check_floating(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(is_supported(tensor.scalar_type()), op, ": ", name, " must be float64, float32, bfloat16 or float16");
}

inline void check_like(const Tensor& tensor, const Tensor& other, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.sizes().equals(other.sizes()), op, ": ", name, " has another shape than the first tensor");
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), op, ": ", name,
                  " has another dtype than the first tensor");
  STD_TORCH_CHECK(tensor.device() == other.device(), op, ": ", name, " is on another device than the first tensor");
}

// Refuses a tensor that is to be written and whose elements may share memory.
inline void check_apart(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < tensor.dim(); ++d) dims.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    STD_TORCH_CHECK(size == 1 || stride > reach, op, ": ", name,
                    " must not overlap itself, as an expanded tensor does: pass a clone");
    reach += stride * (size - 1);
  }
}

// `tensor` with the strides of `like`, which has no gaps: a copy only where it has others.
inline Tensor laid_out_like(const Tensor& tensor, const Tensor& like) {
  bool same = true;
  for (int64_t d = 0; d < like.dim(); ++d) same &= like.size(d) == 1 || tensor.stride(d) == like.stride(d);
  if (same) return tensor;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline void check_add_relu(const Tensor& a, const Tensor& b) {
  check_floating(a, "add_relu", "a");
  check_like(b, a, "add_relu", "b");
}

inline void check_accumulate(const Tensor& totals, const Tensor& sums, const std::optional<Tensor>& labels) {
  const int64_t dims = totals.dim();
  STD_TORCH_CHECK(totals.scalar_type() == ScalarType::Double && (dims == 2 || dims == 3) &&
                      totals.size(dims - 2) == 4 && totals.is_contiguous(),
                  "accumulate_: totals must be contiguous float64 [4, units] or [classes, 4, units]");
  STD_TORCH_CHECK((sums.scalar_type() == ScalarType::Float || sums.scalar_type() == ScalarType::Double) &&
                      sums.dim() == 3 && sums.size(0) == 2 && sums.size(2) == totals.size(dims - 1),
                  "accumulate_: sums must be float32 or float64 [2, samples, units]");
  STD_TORCH_CHECK(sums.device() == totals.device(), "accumulate_: totals and sums must be on one device");
  STD_TORCH_CHECK(labels || dims == 2, "accumulate_: totals of every class need labels");
  STD_TORCH_CHECK(!labels || (labels->scalar_type() == ScalarType::Long && labels->dim() == 1 &&
                              labels->size(0) == sums.size(1) && labels->device() == totals.device()),
                  "accumulate_: labels must be int64 [samples], on the device of the totals");
}

inline void check_mask(const std::vector<Tensor>& parameters, const std::vector<Tensor>& keep,
                       const std::vector<int64_t>& dims) {
  STD_TORCH_CHECK(parameters.size() == keep.size() && keep.size() == dims.size(),
                  "mask_: pass as many parameters as masks and dimensions");
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& parameter = parameters[i];
    check_floating(parameter, "mask_", "every parameter");
    STD_TORCH_CHECK(-parameter.dim() <= dims[i] && dims[i] < parameter.dim(), "mask_: no dimension ", dims[i],
                    " in parameter ", i);
    STD_TORCH_CHECK(keep[i].scalar_type() == ScalarType::Bool && keep[i].dim() == 1 &&
                        keep[i].size(0) == parameter.size(dims[i] < 0 ? dims[i] + parameter.dim() : dims[i]),
                    "mask_: keep[", i, "] must be bool, as long as its parameter in its dimension");
    STD_TORCH_CHECK(keep[i].device() == parameter.device() && parameter.device() == parameters[0].device(),
                    "mask_: everything must be on one device");
  }
}

inline void check_select(const Tensor& scores, int64_t k) {
  check_floating(scores, "select", "scores");
  STD_TORCH_CHECK(scores.dim() == 1, "select: scores must have 1 dimension");
  STD_TORCH_CHECK(0 <= k && k <= scores.numel(), "select: k must be between 0 and the number of scores");
}

// The precision in which an operator works on a tensor.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An operator's `activation`. A number, not a name: the stable ABI leaks every string that a kernel is given.
inline Activation activation_of(int64_t number) {
  STD_TORCH_CHECK(0 <= number && number < kActivations, "epsilon: no activation of number ", number);
  return static_cast<Activation>(number);
}

}  // namespace pxp
