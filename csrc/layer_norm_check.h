// The arguments of `layer_norm`, checked and made contiguous: the same for CPU and CUDA.
#pragma once

#include "check.h"

namespace pxp {

struct LayerNormTensors {
  Tensor carry, output, rstd;
  std::optional<Tensor> weight, residual, join;
  int64_t rows, columns;
};

inline LayerNormTensors prepare_layer_norm(const Tensor& carry, const Tensor& output, const Tensor& rstd,
                                           const std::optional<Tensor>& weight, const std::optional<Tensor>& residual,
                                           const std::optional<Tensor>& join, double eps) {
  check_floating(carry, "layer_norm", "carry");
  check_like(output, carry, "layer_norm", "output");
  STD_TORCH_CHECK(eps >= 0, "layer_norm: eps must not be negative");
  STD_TORCH_CHECK(carry.dim() >= 1, "layer_norm: carry must have at least 1 dimension");
  const int64_t columns = carry.size(carry.dim() - 1);
  const int64_t rows = columns ? carry.numel() / columns : 0;
  STD_TORCH_CHECK(rstd.dim() == carry.dim() && rstd.size(rstd.dim() - 1) == 1 && (!columns || rstd.numel() == rows) &&
                      rstd.device() == carry.device(),
                  "layer_norm: rstd must be [..., 1] on the device of carry");
  const ScalarType compute = compute_type(carry.scalar_type());
  LayerNormTensors t{torch::stable::contiguous(carry),
                     torch::stable::contiguous(output),
                     torch::stable::contiguous(torch::stable::to(rstd, compute)),
                     std::nullopt,
                     std::nullopt,
                     std::nullopt,
                     rows,
                     columns};
  if (weight) {
    STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == columns && weight->device() == carry.device(),
                    "layer_norm: weight must be [columns] on the device of carry");
    t.weight = torch::stable::contiguous(torch::stable::to(*weight, compute));
  }
  if (residual) {
    check_like(*residual, carry, "layer_norm", "residual");
    t.residual = torch::stable::contiguous(*residual);
  }
  if (join) {
    check_like(*join, carry, "layer_norm", "join");
    t.join = torch::stable::contiguous(*join);
  }
  return t;
}

}  // namespace pxp
