#include <algorithm>
#include <memory>
#include <tuple>

#include "../epsilon_layout.h"
#include "common.h"

namespace pxp::cpu {
namespace {

EpsilonTask::Strides strides(const RowStrides& from) { return {from.sample, from.row}; }

void run(EpsilonTensors& t, Pass pass, bool add, int64_t activation, double eps) {
  const Activation parsed = activation_of(activation);
  if (t.output.numel() == 0) return;
  const EpsilonLayout& layout = t.layout;
  EpsilonTask task{};
  task.type = type_of(t.output);
  task.activation = parsed;
  task.pass = pass;
  task.add = add;
  task.eps = eps;
  task.carry = t.carry.const_data_ptr();
  task.output = t.output.const_data_ptr();
  task.scaled = t.scaled.mutable_data_ptr();
  task.sums = t.sums ? t.sums->mutable_data_ptr() : nullptr;
  task.samples = layout.samples;
  task.rows = layout.rows;
  task.columns = layout.columns;
  task.units = layout.units;
  task.group = layout.group;
  task.carry_strides = strides(layout.carry);
  task.output_strides = strides(layout.output);
  task.scaled_strides = strides(layout.scaled);
  task.sums_which = layout.sums.which;
  task.sums_sample = layout.sums.sample;
  const Loops& loop = loops();

  if (pass == Pass::scale || !layout.units_inside) {
    const auto body = pass == Pass::scale ? loop.epsilon_scale : loop.epsilon_positions;
    torch::stable::parallel_for(0, layout.samples * layout.rows, grain(layout.columns),
                                [&](int64_t begin, int64_t end) { body(task, begin, end); });
    return finish_epsilon(t);
  }

  // The shape alone decides the blocks, so the order of the additions does not know the number of threads.
  task.block_rows = std::clamp<int64_t>(131072 / layout.columns, 16, 256);
  task.blocks = (layout.rows + task.block_rows - 1) / task.block_rows;
  const size_t size = task.type == Type::float64 ? sizeof(double) : sizeof(float);
  const std::unique_ptr<char[]> partials(new char[size * 2 * layout.samples * task.blocks * layout.units]);
  task.partials = partials.get();
  torch::stable::parallel_for(0, layout.samples * task.blocks,
                              grain(std::min(task.block_rows, layout.rows) * layout.columns),
                              [&](int64_t begin, int64_t end) { loop.epsilon_units(task, begin, end); });
  torch::stable::parallel_for(0, layout.samples, grain(task.blocks * 2 * layout.units),
                              [&](int64_t begin, int64_t end) { loop.epsilon_combine(task, begin, end); });
  finish_epsilon(t);
}

std::tuple<Tensor, Tensor> epsilon(const Tensor& carry, const Tensor& output, double eps, int64_t activation,
                                   int64_t unit_dim, int64_t group) {
  EpsilonTensors t = prepare_epsilon(carry, output, eps, unit_dim, group);
  run(t, Pass::scale_and_sum, false, activation, eps);
  return {t.result, *t.sums};
}

Pass pass_for(const std::optional<Tensor>& sums, bool stabilized) {
  return !sums ? Pass::scale : stabilized ? Pass::scale_and_sum_stabilized : Pass::scale_and_sum;
}

void epsilon_(const Tensor& carry, const Tensor& output, std::optional<Tensor> sums, double eps, int64_t activation,
              int64_t unit_dim, int64_t group, bool stabilized_sums) {
  EpsilonTensors t = prepare_epsilon_(carry, output, sums, eps, unit_dim, group);
  run(t, pass_for(sums, stabilized_sums), true, activation, eps);
}

void epsilon_over_(const Tensor& carry, const Tensor& output, std::optional<Tensor> sums, double eps,
                   int64_t activation, int64_t unit_dim, int64_t group, bool stabilized_sums) {
  EpsilonTensors t = prepare_epsilon_over_(carry, output, sums, eps, unit_dim, group);
  run(t, pass_for(sums, stabilized_sums), true, activation, eps);
}

void unit_sums_(const Tensor& sums, const Tensor& carry, const Tensor& output, int64_t activation, int64_t unit_dim,
                int64_t group) {
  EpsilonTensors t = prepare_unit_sums_(sums, carry, output, unit_dim, group);
  run(t, Pass::sum, true, activation, 0);
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) {
  m.impl("epsilon", TORCH_BOX(&pxp::cpu::epsilon));
  m.impl("epsilon_", TORCH_BOX(&pxp::cpu::epsilon_));
  m.impl("epsilon_over_", TORCH_BOX(&pxp::cpu::epsilon_over_));
  m.impl("unit_sums_", TORCH_BOX(&pxp::cpu::unit_sums_));
}
