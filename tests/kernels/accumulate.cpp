#include "kernels/accumulate.cuh"

#include "harness.h"

using namespace pxp::cuda;

template <class T>
void run(double* totals, const void* sums, const int64_t* labels, int64_t classes, int64_t rows, int64_t samples,
         int64_t units) {
  const dim3 grid{harness::blocks_for(units, kThreads), unsigned(rows)};
  const auto kernel = classes ? accumulate_units<T, true> : accumulate_units<T, false>;
  simulator::launch(kernel, grid, kThreads, totals, static_cast<const T*>(sums), labels, classes, samples, units);
}

// `classes` is 0 where all samples are added to the same totals; then `rows` must be 1.
extern "C" int accumulate(int is_double, double* totals, const void* sums, const int64_t* labels, int64_t classes,
                          int64_t rows, int64_t samples, int64_t units) {
  return harness::guarded([&] {
    (is_double ? run<double> : run<float>)(totals, sums, labels, classes, rows, samples, units);
  });
}
