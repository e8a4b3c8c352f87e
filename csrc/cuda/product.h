// The products that end in the epsilon rule: what their operators hand over, and what checks they share.
#pragma once

#include "../kernels/product_shape.cuh"
#include "../launch.cuh"

namespace pxp::cuda {

// `carry` (where there is one) and `result` lie in memory as `output` does.
struct ProductTensors {
  Tensor scaled, weight, output, result;
  std::optional<Tensor> carry, sums;
};

// Chooses the kernel and launches it. Of `shape`, what follows from the tiles is filled in here.
void launch_product(const ProductTensors& tensors, ProductShape shape, bool tf32);

inline void check_product(const char* op, const Tensor& scaled, const Tensor& weight, const Tensor& output,
                          const std::optional<Tensor>& carry, const std::optional<Tensor>& sums, int64_t units,
                          double eps) {
  check_floating(output, op, "output");
  for (const Tensor* tensor : {&scaled, &weight}) {
    STD_TORCH_CHECK(tensor->scalar_type() == output.scalar_type() && tensor->device() == output.device(), op,
                    ": scaled, weight and output must have one dtype and device");
  }
  if (carry) check_like(*carry, output, op, "carry");
  if (sums) {
    STD_TORCH_CHECK(sums->scalar_type() == compute_type(output.scalar_type()) && sums->device() == output.device() &&
                        sums->dim() == 3 && sums->size(0) == 2 && sums->size(1) == output.size(0) &&
                        sums->size(2) == units && (units < 2 || sums->stride(2) == 1),
                    op,
                    ": sums must be [2, samples, units] with neighbouring units, in the dtype of sums, beside output");
    check_apart(op, "sums", *sums);
  }
  STD_TORCH_CHECK(eps >= 0, op, ": eps must not be negative");
}

inline int product_size(int64_t size) {
  STD_TORCH_CHECK(size <= 0x7fffffff, "pxp_fast: a dimension is too large for a product");
  return int(size);
}

}  // namespace pxp::cuda
