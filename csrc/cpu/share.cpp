#include "common.h"

namespace pxp::cpu {
namespace {

// A number, not a name: the stable ABI leaks every string that a kernel is given.
Form form_of(int64_t number) {
  STD_TORCH_CHECK(0 <= number && number < kForms, "share_: no form of number ", number);
  return static_cast<Form>(number);
}

void share_(const Tensor& carry, const Tensor& output, const Tensor& product, int64_t form, double eps,
            double first, double second, bool given) {
  check_floating(carry, "share_", "carry");
  check_like(output, carry, "share_", "output");
  check_like(product, carry, "share_", "product");
  STD_TORCH_CHECK(eps >= 0, "share_: eps must not be negative");
  ShareTask task{};
  task.form = form_of(form);
  if (carry.numel() == 0) return;
  check_apart("share_", "carry", carry);
  // Elements of dense tensors with the same strides lie in the same order, and which is which does not matter.
  int64_t reach = 1;
  for (int64_t d = 0; d < carry.dim(); ++d) {
    STD_TORCH_CHECK(carry.size(d) == 1 || (carry.stride(d) == output.stride(d) && carry.stride(d) == product.stride(d)),
                    "share_: the three tensors must have the same strides");
    reach += carry.stride(d) * (carry.size(d) - 1);
  }
  STD_TORCH_CHECK(reach == carry.numel(), "share_: the tensors must be dense");
  task.type = type_of(carry);
  task.given = given;
  task.eps = eps;
  task.first = first;
  task.second = second;
  task.carry = carry.mutable_data_ptr();
  task.output = output.const_data_ptr();
  task.product = product.mutable_data_ptr();
  const Loops& loop = loops();
  torch::stable::parallel_for(0, carry.numel(), 16384,
                              [&](int64_t begin, int64_t end) { loop.share(task, begin, end); });
}

}  // namespace
}  // namespace pxp::cpu

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CPU, m) { m.impl("share_", TORCH_BOX(&pxp::cpu::share_)); }
