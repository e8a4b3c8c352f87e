#include <cmath>

#include "common.h"

namespace pxp::cpu {
namespace {

// Units side by side, samples one after the other: the order that every other implementation adds in.
template <class T>
void accumulate(double* totals, const T* sums, int64_t samples, int64_t units, int64_t begin, int64_t end) {
  double* signed_total = totals;
  double* sample_absolute = totals + units;
  double* token_absolute = totals + 2 * units;
  double* squared = totals + 3 * units;
  for (int64_t n = 0; n < samples; ++n) {
    const T* signed_sum = sums + n * units;
    const T* absolute_sum = sums + (samples + n) * units;
    for (int64_t u = begin; u < end; ++u) {
      const double s = signed_sum[u];
      signed_total[u] += s;
      sample_absolute[u] += std::fabs(s);
      token_absolute[u] += double(absolute_sum[u]);
      squared[u] += s * s;
    }
  }
}

void accumulate_(Tensor totals, const Tensor& sums) {
  check_accumulate(totals, sums);
  const Tensor dense = torch::stable::contiguous(sums);
  const int64_t samples = sums.size(1), units = sums.size(2);
  double* out = static_cast<double*>(totals.mutable_data_ptr());
  torch::stable::parallel_for(0, units, grain(samples * 4), [&](int64_t begin, int64_t end) {
    if (sums.scalar_type() == ScalarType::Double) {
      accumulate(out, static_cast<const double*>(dense.const_data_ptr()), samples, units, begin, end);
    } else {
      accumulate(out, static_cast<const float*>(dense.const_data_ptr()), samples, units, begin, end);
    }
  });
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("accumulate_", TORCH_BOX(&pxp::cpu::accumulate_)); }
