#include "kernels/accumulate.cuh"

#include "harness.h"

using namespace pxp::cuda;

extern "C" int accumulate(int is_double, double* totals, const void* sums, int64_t samples, int64_t units) {
  return harness::guarded([&] {
    const dim3 grid{harness::blocks_for(units, kThreads)};
    if (is_double) {
      simulator::launch(accumulate_units<double>, grid, kThreads, totals, static_cast<const double*>(sums), samples,
                        units);
    } else {
      simulator::launch(accumulate_units<float>, grid, kThreads, totals, static_cast<const float*>(sums), samples,
                        units);
    }
  });
}
