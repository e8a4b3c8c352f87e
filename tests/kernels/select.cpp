#include "kernels/select.cuh"

#include "harness.h"

using namespace pxp::cuda;

extern "C" int select_scores(int type_code, const void* scores, bool* chosen, int64_t n, int64_t k, int largest) {
  return harness::guarded([&] {
    harness::for_type(type_code, [&](auto type) {
      using T = typename decltype(type)::type;
      simulator::launch(radix_select<T>, {1}, kSelectThreads, static_cast<const T*>(scores), chosen, n, k,
                        largest != 0);
    });
  });
}
