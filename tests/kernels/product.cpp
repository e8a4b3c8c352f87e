#include "kernels/product.cuh"

#include "harness.h"
#include "kernels/product_general.cuh"

using namespace pxp::cuda;
using harness::blocks_for;

struct ProductCase {
  int64_t type, loop;  // loop 0: large tiles, 1: small, 2: fused multiply-add, 3: direct, 4: tall
  int64_t samples, groups, channels, features, head, activation, stabilized_sums;
  int64_t size[2], above[2], taps[2], stride[2], padding[2], dilation[2];
  int64_t scaled[4], weight[4], output[4];  // strides of [N, C, H, W]
  int64_t sums_kind, sums_sample;
};

struct ProductPointers {
  const void *scaled, *weight, *output, *carry;
  void *result, *sums;
};

static ImageStrides strides(const int64_t (&from)[4]) { return {from[0], from[1], {from[2], from[3]}}; }

static ProductShape shape_of(const ProductCase& c, double eps) {
  ProductShape shape{};
  shape.samples = c.samples;
  for (int axis = 0; axis < 2; ++axis) {
    shape.size[axis] = int(c.size[axis]);
    shape.above[axis] = int(c.above[axis]);
    shape.taps[axis] = int(c.taps[axis]);
    shape.stride[axis] = int(c.stride[axis]);
    shape.padding[axis] = int(c.padding[axis]);
    shape.dilation[axis] = int(c.dilation[axis]);
  }
  shape.groups = int(c.groups);
  shape.channels = shape.group_channels = int(c.channels);
  shape.features = int(c.features);
  shape.head = int(c.head);
  shape.scaled = strides(c.scaled);
  shape.weight = strides(c.weight);
  shape.output = strides(c.output);
  shape.activation = static_cast<pxp::Activation>(c.activation);
  shape.stabilized_sums = c.stabilized_sums;
  shape.eps = eps;
  if (c.loop == 3) {
    shape.channels *= shape.groups;
    shape.groups = 1;
  }
  return shape;
}

template <class Loop>
void run(ProductShape shape, const ProductPointers& at, int64_t sums_kind, int64_t sums_sample) {
  using T = typename Loop::Element;
  using C = Compute<T>;
  const ProductPlan plan = plan_tiles(shape, Loop::kRows, Loop::kColumns, Loop::kPack);
#ifdef __SANITIZE_ADDRESS__
  constexpr size_t kGuard = 0;
#else
  constexpr size_t kGuard = 64;
#endif
  std::vector<C> room((at.sums ? size_t(plan.workspace) : 0) + 2 * kGuard, C(NAN));
  C* workspace = at.sums ? room.data() + kGuard : nullptr;
  const dim3 grid{unsigned(plan.blocks[0]), unsigned(plan.blocks[1])};
  simulator::launch_with_memory(product<Loop>, grid, Loop::kThreadCount, size_t(product_bytes<Loop>()),
                                static_cast<const T*>(at.scaled), static_cast<const T*>(at.weight),
                                static_cast<const T*>(at.output), static_cast<const T*>(at.carry),
                                static_cast<T*>(at.result), plan.heads_in_tiles ? workspace : nullptr,
                                plan.heads_in_tiles ? nullptr : workspace, shape);
  for (size_t i = 0; i < kGuard; ++i) {
    if (!std::isnan(room[i]) || !std::isnan(room[room.size() - 1 - i])) {
      throw std::runtime_error("written outside the workspace");
    }
  }
  if (!at.sums) return;
  const SumsTable<C> sums{static_cast<C*>(at.sums), sums_kind, sums_sample};
  if (plan.heads_in_tiles) {
    simulator::launch(product_combine<C>, {blocks_for(2 * shape.samples * shape.units, kThreads)}, kThreads, workspace,
                      sums, Loop::kRows, shape);
  } else {
    simulator::launch(product_heads<C>, {unsigned(shape.samples * shape.units)}, kThreads, workspace, sums, shape);
  }
}

extern "C" int product_epsilon(const ProductCase* c, double eps, const void* scaled, const void* weight,
                               const void* output, const void* carry, void* result, void* sums) {
  return harness::guarded([&] {
    const ProductShape shape = shape_of(*c, eps);
    const ProductPointers at{scaled, weight, output, carry, result, sums};
    harness::for_type(int(c->type), [&](auto type) {
      using T = typename decltype(type)::type;
      if (c->loop == 2) return run<FmaLoop<T>>(shape, at, c->sums_kind, c->sums_sample);
      if (c->loop == 3) return run<DirectLoop<T>>(shape, at, c->sums_kind, c->sums_sample);
      if constexpr (sizeof(T) <= 4) {
        if (c->loop == 1) return run<SmallTile<T>>(shape, at, c->sums_kind, c->sums_sample);
#ifndef ONLY_TYPE
        if (c->loop == 4) return run<TallTile<T>>(shape, at, c->sums_kind, c->sums_sample);
        return run<LargeTile<T>>(shape, at, c->sums_kind, c->sums_sample);
#endif
      }
      throw std::runtime_error("no such loop for this type");
    });
  });
}
