#include <cmath>

#include "common.h"

namespace pxp::cpu {
namespace {

// `labels` is null where every sample counts; `classes` is 0 where all are added to the same totals.
struct AccumulateTask {
  double* totals;
  const int64_t* labels;
  int64_t classes, samples, units;
};

// Units side by side, samples one after the other: the order that every other implementation adds in.
template <class T>
void accumulate(const AccumulateTask& task, const T* sums, int64_t begin, int64_t end) {
  const int64_t units = task.units;
  for (int64_t n = 0; n < task.samples; ++n) {
    const int64_t label = task.labels ? task.labels[n] : 0;
    if (label < 0 || (task.classes && label >= task.classes)) continue;
    double* signed_total = task.totals + (task.classes ? label * 4 * units : 0);
    double* sample_absolute = signed_total + units;
    double* token_absolute = signed_total + 2 * units;
    double* squared = signed_total + 3 * units;
    const T* signed_sum = sums + n * units;
    const T* absolute_sum = sums + (task.samples + n) * units;
    for (int64_t u = begin; u < end; ++u) {
      const double s = signed_sum[u];
      signed_total[u] += s;
      sample_absolute[u] += std::fabs(s);
      token_absolute[u] += double(absolute_sum[u]);
      squared[u] += s * s;
    }
  }
}

void accumulate_(Tensor totals, const Tensor& sums, std::optional<Tensor> labels) {
  check_accumulate(totals, sums, labels);
  const Tensor dense = torch::stable::contiguous(sums);
  if (labels) labels = torch::stable::contiguous(*labels);
  AccumulateTask task{};
  task.totals = static_cast<double*>(totals.mutable_data_ptr());
  task.labels = labels ? static_cast<const int64_t*>(labels->const_data_ptr()) : nullptr;
  task.classes = totals.dim() == 3 ? totals.size(0) : 0;
  task.samples = sums.size(1);
  task.units = sums.size(2);
  torch::stable::parallel_for(0, task.units, grain(task.samples * 4), [&](int64_t begin, int64_t end) {
    if (sums.scalar_type() == ScalarType::Double) {
      accumulate(task, static_cast<const double*>(dense.const_data_ptr()), begin, end);
    } else {
      accumulate(task, static_cast<const float*>(dense.const_data_ptr()), begin, end);
    }
  });
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("accumulate_", TORCH_BOX(&pxp::cpu::accumulate_)); }
