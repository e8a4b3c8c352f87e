#include "../layer_norm_check.h"
#include "common.h"

namespace pxp::cpu {
namespace {

void run(const LayerNormTensors& t, Tensor& result, double eps) {
  LayerNormTask task{};
  task.type = type_of(t.carry);
  task.eps = eps;
  task.carry = t.carry.const_data_ptr();
  task.output = t.output.const_data_ptr();
  task.residual = t.residual ? t.residual->const_data_ptr() : nullptr;
  task.join = t.join ? t.join->const_data_ptr() : nullptr;
  task.result = result.mutable_data_ptr();
  task.rstd = t.rstd.const_data_ptr();
  task.weight = t.weight ? t.weight->const_data_ptr() : nullptr;
  task.rows = t.rows;
  task.columns = t.columns;
  const Loops& loop = loops();
  torch::stable::parallel_for(0, task.rows, grain(task.columns),
                              [&](int64_t begin, int64_t end) { loop.layer_norm(task, begin, end); });
}

Tensor layer_norm(const Tensor& carry, const Tensor& output, const Tensor& rstd, std::optional<Tensor> weight,
                  std::optional<Tensor> residual, double eps, std::optional<Tensor> join) {
  const LayerNormTensors t = prepare_layer_norm(carry, output, rstd, weight, residual, join, eps);
  Tensor result = torch::stable::new_empty(carry, carry.sizes());
  run(t, result, eps);
  return result;
}

void layer_norm_(const Tensor& carry, const Tensor& output, const Tensor& rstd, std::optional<Tensor> weight,
                 Tensor residual, double eps, std::optional<Tensor> join) {
  check_apart("layer_norm_", "residual", residual);
  LayerNormTensors t = prepare_layer_norm(carry, output, rstd, weight, residual, join, eps);
  run(t, *t.residual, eps);
  if (!residual.is_contiguous()) torch::stable::copy_(residual, *t.residual);
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&pxp::cpu::layer_norm));
  m.impl("layer_norm_", TORCH_BOX(&pxp::cpu::layer_norm_));
}
