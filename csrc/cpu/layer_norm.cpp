#include "../layer_norm_check.h"
#include "common.h"

namespace pxp::cpu {
namespace {

Tensor layer_norm(const Tensor& carry, const Tensor& output, const Tensor& rstd, std::optional<Tensor> weight,
                  std::optional<Tensor> residual, double eps) {
  LayerNormTensors t = prepare_layer_norm(carry, output, rstd, weight, residual, eps);
  LayerNormTask task{};
  task.type = type_of(carry);
  task.eps = eps;
  task.carry = t.carry.const_data_ptr();
  task.output = t.output.const_data_ptr();
  task.residual = t.residual ? t.residual->const_data_ptr() : nullptr;
  task.result = t.result.mutable_data_ptr();
  task.rstd = t.rstd.const_data_ptr();
  task.weight = t.weight ? t.weight->const_data_ptr() : nullptr;
  task.rows = t.rows;
  task.columns = t.columns;
  const Loops& run = loops();
  torch::stable::parallel_for(0, task.rows, grain(task.columns),
                              [&](int64_t begin, int64_t end) { run.layer_norm(task, begin, end); });
  return t.result;
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("layer_norm", TORCH_BOX(&pxp::cpu::layer_norm)); }
