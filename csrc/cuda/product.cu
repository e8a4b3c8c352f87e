#include "../kernels/product.cuh"

#include <type_traits>

#include "../kernels/product_general.cuh"
#include "product.h"

namespace pxp::cuda {
namespace {

constexpr int64_t kMostGridRows = 65535;
// Tiles from which on all multiprocessors have work. A constant, so that the sums do not depend on the GPU's size.
constexpr int64_t kManyTiles = 128;

template <class Loop>
void launch(const ProductTensors& t, ProductShape shape, cudaStream_t stream) {
  using T = typename Loop::Element;
  using C = Compute<T>;
  const ProductPlan plan = plan_tiles(shape, Loop::kRows, Loop::kColumns, Loop::kPack);
  STD_TORCH_CHECK(plan.blocks[1] <= kMostGridRows, "pxp_fast: the convolution's stride is too large");

  C *partials = nullptr, *relevance = nullptr;
  std::optional<Tensor> workspace;
  if (t.sums) {
    workspace = torch::stable::new_empty(t.output, {plan.workspace}, compute_type(t.output.scalar_type()));
    (plan.heads_in_tiles ? partials : relevance) = static_cast<C*>(workspace->mutable_data_ptr());
  }

  constexpr int bytes = product_bytes<Loop>();
  if constexpr (bytes > 48 * 1024) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(product<Loop>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  const dim3 grid(blocks_for(plan.blocks[0], 1), unsigned(plan.blocks[1]));
  product<Loop><<<grid, Loop::kThreadCount, bytes, stream>>>(
      static_cast<const T*>(t.scaled.const_data_ptr()), static_cast<const T*>(t.weight.const_data_ptr()),
      static_cast<const T*>(t.output.const_data_ptr()),
      t.carry ? static_cast<const T*>(t.carry->const_data_ptr()) : nullptr,
      static_cast<T*>(t.result.mutable_data_ptr()), partials, relevance, shape);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (!t.sums) return;

  const SumsTable<C> sums{static_cast<C*>(t.sums->mutable_data_ptr()), t.sums->stride(0), t.sums->stride(1)};
  if (plan.heads_in_tiles) {
    product_combine<C><<<blocks_for(2 * shape.samples * shape.units, kThreads), kThreads, 0, stream>>>(
        partials, sums, Loop::kRows, shape);
  } else {
    product_heads<C><<<blocks_for(shape.samples * shape.units, 1), kThreads, 0, stream>>>(relevance, sums, shape);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Whether channels and features are neighbours, and come in whole packs of 16 bytes from addresses that 16 divides.
bool fits_tensor_cores(const ProductTensors& t, const ProductShape& shape) {
  if (shape.scaled.channel != 1 || shape.weight.channel != 1 || shape.output.channel != 1) return false;
  for (const ImageStrides& strides : {shape.scaled, shape.weight, shape.output}) {
    if (!aligned({}, {strides.sample, strides.axis[0], strides.axis[1]}, t.output.element_size())) return false;
  }
  return aligned({t.scaled.const_data_ptr(), t.weight.const_data_ptr(), t.output.const_data_ptr(),
                  t.result.const_data_ptr(), t.carry ? t.carry->const_data_ptr() : nullptr},
                 {shape.channels, shape.features}, t.output.element_size());
}

template <class Loop>
int64_t tiles_of(ProductShape shape) {
  const ProductPlan plan = plan_tiles(shape, Loop::kRows, Loop::kColumns, Loop::kPack);
  return plan.blocks[0] * plan.blocks[1];
}

// The largest tile that leaves work for all multiprocessors, and that heads fit into.
template <class T>
void choose_tile(const ProductTensors& t, const ProductShape& shape, cudaStream_t stream) {
  if (shape.head > SmallTile<T>::kColumns) return launch<LargeTile<T>>(t, shape, stream);
  if (shape.channels <= TallTile<T>::kColumns) {
    if (tiles_of<TallTile<T>>(shape) >= kManyTiles) return launch<TallTile<T>>(t, shape, stream);
  } else if (tiles_of<LargeTile<T>>(shape) >= kManyTiles) {
    return launch<LargeTile<T>>(t, shape, stream);
  }
  launch<SmallTile<T>>(t, shape, stream);
}

}  // namespace

void launch_product(const ProductTensors& t, ProductShape shape, bool tf32) {
  const cudaStream_t stream = current_stream(t.output);
  if (!t.sums) shape.head = 1;
  for_type(t.output.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const bool in_grid = class_count(shape) * shape.groups <= kMostGridRows;
    if constexpr (!std::is_same_v<T, double>) {
      if ((sizeof(T) == 2 || tf32) && in_grid && fits_tensor_cores(t, shape)) return choose_tile<T>(t, shape, stream);
    }
    // A tile of FmaLoop would stand almost empty in narrow groups.
    if (in_grid && (shape.groups == 1 || shape.channels >= 16)) return launch<FmaLoop<T>>(t, shape, stream);
    shape.channels *= shape.groups;
    shape.groups = 1;
    launch<DirectLoop<T>>(t, shape, stream);
  });
}

}  // namespace pxp::cuda
