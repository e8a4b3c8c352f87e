#include "common.h"

namespace pxp::cpu {
namespace {

Tensor add_relu(const Tensor& a, const Tensor& b) {
  check_add_relu(a, b);
  Tensor result = torch::stable::empty_like(a);
  if (a.numel() == 0) return result;
  const Tensor first = laid_out_like(a, result), second = laid_out_like(b, result);
  const AddReluTask task{type_of(a), first.const_data_ptr(), second.const_data_ptr(), result.mutable_data_ptr()};
  const Loops& loop = loops();
  torch::stable::parallel_for(0, a.numel(), grain(1),
                              [&](int64_t begin, int64_t end) { loop.add_relu(task, begin, end); });
  return result;
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("add_relu", TORCH_BOX(&pxp::cpu::add_relu)); }
