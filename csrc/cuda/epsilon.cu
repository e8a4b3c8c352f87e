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
  Compute<T>* sums;
};

EpsilonStrides strides(const RowStrides& from) { return {from.sample, from.row}; }

template <class T, int V>
void launch_positions(const Pointers<T>& at, const EpsilonShape& shape, cudaStream_t stream) {
  const int64_t rows = shape.samples * shape.rows;
  // A block per row where a warp would go round more than 16 times.
  if (shape.columns > 16 * kWarp * V) {
    epsilon_positions<T, V, kThreads>
        <<<blocks_for(rows, 1), kThreads, 0, stream>>>(at.carry, at.output, at.scaled, at.sums, shape);
  } else {
    epsilon_positions<T, V, kWarp>
        <<<blocks_for(rows, kThreads / kWarp), kThreads, 0, stream>>>(at.carry, at.output, at.scaled, at.sums, shape);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, int V>
void launch_units(const Pointers<T>& at, Compute<T>* partials, const EpsilonShape& shape, cudaStream_t stream) {
  int width = 1;
  while (width < kWarp && width * V < shape.columns) width *= 2;
  const int64_t tiles = (shape.columns + width * V - 1) / (width * V);
  epsilon_units<T, V><<<blocks_for(shape.samples * shape.blocks * tiles, 1), kThreads, 0, stream>>>(
      at.carry, at.output, at.scaled, partials, shape, width, tiles);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
void run(EpsilonTensors& t, Activation activation, double eps, cudaStream_t stream) {
  const EpsilonLayout& layout = t.layout;
  EpsilonShape shape{layout.samples,
                     layout.rows,
                     layout.columns,
                     layout.units,
                     layout.group,
                     1,
                     1,
                     strides(layout.carry),
                     strides(layout.output),
                     strides(layout.scaled),
                     activation,
                     eps};
  const Pointers<T> at{static_cast<const T*>(t.carry.const_data_ptr()),
                       static_cast<const T*>(t.output.const_data_ptr()), static_cast<T*>(t.scaled.mutable_data_ptr()),
                       static_cast<Compute<T>*>(t.sums->mutable_data_ptr())};
  const bool packs = aligned({at.carry, at.output, at.scaled},
                             {layout.columns, layout.carry.sample, layout.carry.row, layout.output.sample,
                              layout.output.row, layout.scaled.sample, layout.scaled.row},
                             sizeof(T));
  if (!layout.units_inside) {
    packs ? launch_positions<T, kVector<T>>(at, shape, stream) : launch_positions<T, 1>(at, shape, stream);
    return;
  }

  // The shape alone decides the blocks, so the same tensors always add in the same order.
  shape.block_rows = std::clamp<int64_t>(16384 / layout.columns, 16, 128);
  shape.blocks = (layout.rows + shape.block_rows - 1) / shape.block_rows;
  Tensor partials = torch::stable::new_empty(*t.sums, {shape.samples, shape.blocks, 2, shape.units});
  Compute<T>* partial_sums = static_cast<Compute<T>*>(partials.mutable_data_ptr());
  if (layout.group > 1) {
    const int64_t items = shape.samples * shape.blocks * shape.units;
    epsilon_groups<T><<<blocks_for(items, kThreads / kWarp), kThreads, 0, stream>>>(at.carry, at.output, at.scaled,
                                                                                    partial_sums, shape);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  } else if (packs) {
    launch_units<T, kVector<T>>(at, partial_sums, shape, stream);
  } else {
    launch_units<T, 1>(at, partial_sums, shape, stream);
  }
  epsilon_combine<Compute<T>><<<blocks_for(2 * shape.samples * shape.units, kThreads), kThreads, 0, stream>>>(
      partial_sums, at.sums, shape.samples, shape.units, shape.blocks);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor> epsilon(const Tensor& carry, const Tensor& output, double eps, std::string activation,
                                   int64_t unit_dim, int64_t group) {
  const DeviceGuard guard(output.get_device_index());
  EpsilonTensors t = prepare_epsilon(carry, output, eps, unit_dim, group);
  const Activation parsed = parse_activation(activation);
  if (t.output.numel() == 0) return {t.result, *t.sums};
  const cudaStream_t stream = current_stream(output);
  for_type(output.scalar_type(), [&](auto type) { run<typename decltype(type)::type>(t, parsed, eps, stream); });
  finish_epsilon(t);
  return {t.result, *t.sums};
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("epsilon", TORCH_BOX(&pxp::cuda::epsilon)); }
