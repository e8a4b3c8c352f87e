#include "kernels/accumulate.cuh"

#include "harness.h"

using namespace pxp::cuda;

template <class T>
void run(double* totals, const void* sums, const int64_t* labels, int64_t classes, int64_t rows, int64_t samples,
         int64_t units) {
  const unsigned blocks = harness::blocks_for(units, kThreads);
  const T* in = static_cast<const T*>(sums);
  if (classes) {
    simulator::launch(accumulate_classes<T>, {blocks, unsigned(rows)}, kThreads, totals, in, labels, classes, samples,
                      units);
  } else {
    simulator::launch(accumulate_units<T>, {blocks}, kThreads, totals, in, labels, samples, units);
  }
}

// `classes` is 0 where all samples are added to the same totals; `rows` is for the others.
extern "C" int accumulate(int is_double, double* totals, const void* sums, const int64_t* labels, int64_t classes,
                          int64_t rows, int64_t samples, int64_t units) {
  return harness::guarded([&] {
    (is_double ? run<double> : run<float>)(totals, sums, labels, classes, rows, samples, units);
  });
}
