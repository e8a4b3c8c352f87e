#include "../max_pool_check.h"

#include <algorithm>

#include "common.h"

namespace pxp::cpu {
namespace {

using Pair = std::vector<int64_t>;

void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

MaxPoolTask task_of(const MaxPoolTensors& t) {
  MaxPoolTask task{};
  task.type = type_of(t.value);
  task.shape = t.shape;
  task.value = t.value.const_data_ptr();
  task.result = t.result.mutable_data_ptr();
  return task;
}

Tensor max_pool(const Tensor& value, Pair kernel, Pair stride, Pair padding, Pair dilation, bool ceil_mode) {
  const MaxPoolTensors t = prepare_max_pool(value, kernel, stride, padding, dilation, ceil_mode);
  if (t.result.numel() == 0) return t.result;
  const MaxPoolTask task = task_of(t);
  const MaxPoolAxis& columns = t.shape.axes[1];
  const Loops& loop = loops();
  torch::stable::parallel_for(0, t.shape.samples * t.shape.axes[0].pooled,
                              grain(columns.pooled * columns.kernel * t.shape.channels),
                              [&](int64_t begin, int64_t end) { loop.max_pool(task, begin, end); });
  return t.result;
}

void run(const MaxPoolTensors& t, std::optional<double> eps) {
  if (t.value.numel() == 0) return;
  MaxPoolTask task = task_of(t);
  task.carry = data_of(t.carry);
  task.rest = data_of(t.rest);
  task.sums = data_of(t.sums);
  task.stabilizes = eps.has_value();
  task.eps = eps.value_or(0);
  if (t.sums) {
    task.sums_which = t.sums->stride(0);
    task.sums_image = t.sums->stride(1);
  }
  // A channel of a sample is one thread's from its first row to its last, as a row is written where the next ones'
  // windows have been. Its sums do not depend on how many go together: as many as threads leave each other.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = t.shape.samples * t.shape.channels / std::max<int64_t>(threads, 1);
  task.tile = std::clamp<int64_t>(share / 32 * 32, std::min<int64_t>(32, t.shape.channels),
                                  std::min(kMaxPoolTile, t.shape.channels));
  task.tiles = (t.shape.channels + task.tile - 1) / task.tile;
  const Loops& loop = loops();
  torch::stable::parallel_for(0, t.shape.samples * task.tiles,
                              grain(task.tile * t.shape.axes[0].size * t.shape.axes[1].size),
                              [&](int64_t begin, int64_t end) { loop.max_pool_epsilon(task, begin, end); });
}

Tensor max_pool_epsilon(const Tensor& carry, const Tensor& value, std::optional<Tensor> rest,
                        std::optional<Tensor> sums, Pair kernel, Pair stride, Pair padding, Pair dilation,
                        bool ceil_mode, std::optional<double> eps) {
  const MaxPoolTensors t =
      prepare_max_pool_epsilon(carry, value, rest, sums, kernel, stride, padding, dilation, ceil_mode, eps, false);
  run(t, eps);
  return t.result;
}

void max_pool_epsilon_(Tensor value, const Tensor& carry, std::optional<Tensor> rest, std::optional<Tensor> sums,
                       Pair kernel, Pair stride, Pair padding, Pair dilation, bool ceil_mode,
                       std::optional<double> eps) {
  const MaxPoolTensors t =
      prepare_max_pool_epsilon(carry, value, rest, sums, kernel, stride, padding, dilation, ceil_mode, eps, true);
  run(t, eps);
  if (t.result.const_data_ptr() != value.const_data_ptr()) torch::stable::copy_(value, t.result);
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&pxp::cpu::max_pool));
  m.impl("max_pool_epsilon", TORCH_BOX(&pxp::cpu::max_pool_epsilon));
  m.impl("max_pool_epsilon_", TORCH_BOX(&pxp::cpu::max_pool_epsilon_));
}
