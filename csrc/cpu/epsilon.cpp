#include <algorithm>
#include <memory>
#include <tuple>

#include "../epsilon_layout.h"
#include "common.h"

namespace pxp::cpu {
namespace {

EpsilonTask::Strides strides(const RowStrides& from) { return {from.sample, from.row}; }

std::tuple<Tensor, Tensor> epsilon(const Tensor& carry, const Tensor& output, double eps, std::string activation,
                                   int64_t unit_dim, int64_t group) {
  EpsilonTensors t = prepare_epsilon(carry, output, eps, unit_dim, group);
  const Activation parsed = parse_activation(activation);
  if (t.output.numel() == 0) return finish_epsilon(t);

  const EpsilonLayout& layout = t.layout;
  EpsilonTask task{};
  task.type = type_of(t.output);
  task.activation = parsed;
  task.eps = eps;
  task.carry = t.carry.const_data_ptr();
  task.output = t.output.const_data_ptr();
  task.scaled = t.scaled.mutable_data_ptr();
  task.sums = t.sums.mutable_data_ptr();
  task.samples = layout.samples;
  task.rows = layout.rows;
  task.columns = layout.columns;
  task.units = layout.units;
  task.group = layout.group;
  task.carry_strides = strides(layout.carry);
  task.output_strides = strides(layout.output);
  task.scaled_strides = strides(layout.scaled);
  const Loops& run = loops();

  if (!layout.units_inside) {
    torch::stable::parallel_for(0, layout.samples * layout.rows, grain(layout.columns),
                                [&](int64_t begin, int64_t end) { run.epsilon_positions(task, begin, end); });
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
                              [&](int64_t begin, int64_t end) { run.epsilon_units(task, begin, end); });
  torch::stable::parallel_for(0, layout.samples, grain(task.blocks * 2 * layout.units),
                              [&](int64_t begin, int64_t end) { run.epsilon_combine(task, begin, end); });
  return finish_epsilon(t);
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("epsilon", TORCH_BOX(&pxp::cpu::epsilon)); }
