#include "kernels/add_relu.cuh"

#include "harness.h"

using namespace pxp::cuda;

extern "C" int add_relu(int type_code, int vector, const void* a, const void* b, void* result, int64_t elements) {
  return harness::guarded([&] {
    harness::for_type(type_code, [&](auto type) {
      using T = typename decltype(type)::type;
      const auto go = [&](auto kernel, int64_t per_thread) {
        simulator::launch(kernel, {harness::blocks_for(elements / per_thread, kThreads)}, kThreads,
                          static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(result), elements);
      };
      vector ? go(add_relu_elements<T, kVector<T>>, kVector<T>) : go(add_relu_elements<T, 1>, 1);
    });
  });
}
