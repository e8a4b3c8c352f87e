#include "kernels/layer_norm.cuh"

#include "harness.h"

using namespace pxp::cuda;

extern "C" int layer_norm(int type_code, int vector, int block_per_row, const void* carry, const void* output,
                          const void* rstd, const void* weight, const void* residual, const void* join, void* result,
                          int64_t rows, int64_t columns, double eps) {
  return harness::guarded([&] {
    harness::for_type(type_code, [&](auto type) {
      using T = typename decltype(type)::type;
      using C = Compute<T>;
      const auto go = [&](auto kernel, int64_t rows_per_block) {
        simulator::launch(kernel, {harness::blocks_for(rows, rows_per_block)}, kThreads, static_cast<const T*>(carry),
                          static_cast<const T*>(output), static_cast<const C*>(rstd), static_cast<const C*>(weight),
                          static_cast<const T*>(residual), static_cast<const T*>(join), static_cast<T*>(result), rows,
                          columns, eps);
      };
      if (block_per_row) {
        vector ? go(layer_norm_rows<T, kVector<T>, kThreads>, 1) : go(layer_norm_rows<T, 1, kThreads>, 1);
      } else {
        constexpr int warps = kThreads / kWarp;
        vector ? go(layer_norm_rows<T, kVector<T>, kWarp>, warps) : go(layer_norm_rows<T, 1, kWarp>, warps);
      }
    });
  });
}
