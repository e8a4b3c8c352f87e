#include "../kernels/epsilon.cuh"

#include <algorithm>
#include <tuple>

#include "../epsilon_layout.h"
#include "../launch.cuh"

namespace pxp::cuda {
namespace {

template <class T>
struct Pointers {
  const T* carry;
  const T* output;
  T* scaled;
};

EpsilonStrides strides(const RowStrides& from) { return {from.sample, from.row}; }

template <class T, int V>
void launch_positions(const Pointers<T>& at, const EpsilonSums<Compute<T>>& sums, const EpsilonShape& shape,
                      cudaStream_t stream) {
  const int64_t rows = shape.samples * shape.rows;
  // A block per row where a warp would go round more than 16 times.
  if (shape.columns > 16 * kWarp * V) {
    epsilon_positions<T, V, kThreads>
        <<<blocks_for(rows, 1), kThreads, 0, stream>>>(at.carry, at.output, at.scaled, sums, shape);
  } else {
    epsilon_positions<T, V, kWarp>
        <<<blocks_for(rows, kThreads / kWarp), kThreads, 0, stream>>>(at.carry, at.output, at.scaled, sums, shape);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, int V>
void launch_units(const Pointers<T>& at, const EpsilonSums<Compute<T>>& sums, const EpsilonShape& shape,
                  cudaStream_t stream) {
  const int width = lanes_for(shape.columns, V);
  const int64_t tiles = (shape.columns + width * V - 1) / (width * V);
  epsilon_units<T, V><<<blocks_for(shape.samples * shape.blocks * tiles, 1), kThreads, 0, stream>>>(
      at.carry, at.output, at.scaled, sums, shape, width, tiles);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, int V>
void launch_groups(const Pointers<T>& at, const EpsilonSums<Compute<T>>& sums, const EpsilonShape& shape,
                   cudaStream_t stream) {
  const int64_t items = shape.samples * shape.blocks * shape.units;
  epsilon_groups<T, V><<<blocks_for(items, kThreads / kWarp), kThreads, 0, stream>>>(
      at.carry, at.output, at.scaled, sums, shape, lanes_for(shape.group, V));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
void launch(EpsilonTensors& t, EpsilonShape shape, bool add, cudaStream_t stream) {
  using C = Compute<T>;
  const EpsilonLayout& layout = t.layout;
  const Pointers<T> at{static_cast<const T*>(t.carry.const_data_ptr()),
                       static_cast<const T*>(t.output.const_data_ptr()), static_cast<T*>(t.scaled.mutable_data_ptr())};
  EpsilonSums<C> sums{nullptr, layout.sums.sample, layout.sums.which, add};
  if (t.sums) sums.at = static_cast<C*>(t.sums->mutable_data_ptr());
  const bool packs = aligned({at.carry, at.output, at.scaled},
                             {layout.columns, layout.carry.sample, layout.carry.row, layout.output.sample,
                              layout.output.row, layout.scaled.sample, layout.scaled.row},
                             sizeof(T));
  if (!layout.units_inside) {
    packs ? launch_positions<T, kVector<T>>(at, sums, shape, stream) : launch_positions<T, 1>(at, sums, shape, stream);
    return;
  }

  // The shape alone decides the blocks, so the same tensors always add in the same order.
  shape.block_rows = std::clamp<int64_t>(16384 / layout.columns, 16, 128);
  shape.blocks = (layout.rows + shape.block_rows - 1) / shape.block_rows;
  const bool combine = t.sums && shape.blocks > 1;
  Tensor partials;
  EpsilonSums<C> block_sums = sums;
  if (combine) {
    partials = torch::stable::new_empty(*t.sums, {shape.samples, shape.blocks, 2, shape.units});
    block_sums = {static_cast<C*>(partials.mutable_data_ptr()), 2 * shape.units, shape.units, false};
  }
  if (t.sums && layout.group > 1) {
    packs&& layout.group % kVector<T> == 0 ? launch_groups<T, kVector<T>>(at, block_sums, shape, stream)
                                           : launch_groups<T, 1>(at, block_sums, shape, stream);
  } else {
    packs ? launch_units<T, kVector<T>>(at, block_sums, shape, stream)
          : launch_units<T, 1>(at, block_sums, shape, stream);
  }
  if (!combine) return;
  epsilon_combine<C><<<blocks_for(2 * shape.samples * shape.units, kThreads), kThreads, 0, stream>>>(
      block_sums.at, sums, shape.samples, shape.units, shape.blocks);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Mode {
  bool writes, stabilized, add;
};

void run(EpsilonTensors& t, const Mode& mode, int64_t activation, double eps) {
  const Activation parsed = activation_of(activation);
  if (t.output.numel() == 0) return;
  const EpsilonLayout& layout = t.layout;
  const EpsilonShape shape{layout.samples,
                           layout.rows,
                           layout.columns,
                           layout.units,
                           layout.group,
                           1,
                           1,
                           strides(layout.carry),
                           strides(layout.output),
                           strides(layout.scaled),
                           parsed,
                           mode.writes,
                           mode.stabilized,
                           eps};
  const cudaStream_t stream = current_stream(t.output);
  for_type(t.output.scalar_type(),
           [&](auto type) { launch<typename decltype(type)::type>(t, shape, mode.add, stream); });
  finish_epsilon(t);
}

std::tuple<Tensor, Tensor> epsilon(const Tensor& carry, const Tensor& output, double eps, int64_t activation,
                                   int64_t unit_dim, int64_t group) {
  const DeviceGuard guard(output.get_device_index());
  EpsilonTensors t = prepare_epsilon(carry, output, eps, unit_dim, group);
  run(t, {true, false, false}, activation, eps);
  return {t.result, *t.sums};
}

void epsilon_(const Tensor& carry, const Tensor& output, std::optional<Tensor> sums, double eps, int64_t activation,
              int64_t unit_dim, int64_t group, bool stabilized_sums) {
  const DeviceGuard guard(output.get_device_index());
  EpsilonTensors t = prepare_epsilon_(carry, output, sums, eps, unit_dim, group);
  run(t, {true, stabilized_sums, true}, activation, eps);
}

void epsilon_over_(const Tensor& carry, const Tensor& output, std::optional<Tensor> sums, double eps,
                   int64_t activation, int64_t unit_dim, int64_t group, bool stabilized_sums) {
  const DeviceGuard guard(output.get_device_index());
  EpsilonTensors t = prepare_epsilon_over_(carry, output, sums, eps, unit_dim, group);
  run(t, {true, stabilized_sums, true}, activation, eps);
}

void unit_sums_(const Tensor& sums, const Tensor& carry, const Tensor& output, int64_t activation, int64_t unit_dim,
                int64_t group) {
  const DeviceGuard guard(output.get_device_index());
  EpsilonTensors t = prepare_unit_sums_(sums, carry, output, unit_dim, group);
  run(t, {false, false, true}, activation, 0);
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) {
  m.impl("epsilon", TORCH_BOX(&pxp::cuda::epsilon));
  m.impl("epsilon_", TORCH_BOX(&pxp::cuda::epsilon_));
  m.impl("epsilon_over_", TORCH_BOX(&pxp::cuda::epsilon_over_));
  m.impl("unit_sums_", TORCH_BOX(&pxp::cuda::unit_sums_));
}
