#include "product.h"

namespace pxp::cuda {
namespace {

ImageStrides strides_of(const Tensor& image) {
  const auto step = [&](int64_t d) { return image.size(d) == 1 ? 0 : image.stride(d); };
  return {step(0), image.size(1) == 1 ? 1 : image.stride(1), {step(2), step(3)}};
}

Tensor convolution_epsilon(const Tensor& scaled, const Tensor& weight, const Tensor& output,
                           std::optional<Tensor> carry, std::optional<Tensor> sums, std::vector<int64_t> stride,
                           std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, double eps,
                           int64_t activation, bool tf32) {
  const char* op = "convolution_epsilon";
  STD_TORCH_CHECK(scaled.dim() == 4 && weight.dim() == 4 && output.dim() == 4 && groups >= 1, op,
                  ": scaled must be [N, K, OH, OW], weight [K, C / groups, R, S], output [N, C, H, W]");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must be two numbers each");
  STD_TORCH_CHECK(scaled.size(0) == output.size(0) && scaled.size(1) == weight.size(0) &&
                      weight.size(0) % groups == 0 && output.size(1) == weight.size(1) * groups,
                  op, ": samples, features or channels do not fit");
  check_product(op, scaled, weight, output, carry, sums, output.size(1), eps);

  ProductShape shape{};
  shape.activation = activation_of(activation);
  shape.samples = output.size(0);
  for (int axis = 0; axis < 2; ++axis) {
    STD_TORCH_CHECK(stride[axis] >= 1 && padding[axis] >= 0 && dilation[axis] >= 1 && weight.size(2 + axis) >= 1, op,
                    ": stride, padding, dilation or kernel out of range");
    const int64_t reach = output.size(2 + axis) + 2 * padding[axis] - dilation[axis] * (weight.size(2 + axis) - 1) - 1;
    STD_TORCH_CHECK(reach >= 0 && scaled.size(2 + axis) == reach / stride[axis] + 1, op,
                    ": scaled is not as large as the convolution's output");
    shape.size[axis] = product_size(output.size(2 + axis));
    shape.above[axis] = product_size(scaled.size(2 + axis));
    shape.taps[axis] = product_size(weight.size(2 + axis));
    // Where there is one position above, or one tap, steps between them mean nothing, and may be anything.
    shape.stride[axis] = shape.above[axis] == 1 ? 1 : product_size(stride[axis]);
    shape.padding[axis] = product_size(padding[axis]);
    shape.dilation[axis] = shape.taps[axis] == 1 ? 1 : product_size(dilation[axis]);
  }
  product_size(output.size(2) * output.size(3));  // the positions of a sample are counted in 32 bits
  shape.groups = product_size(groups);
  product_size(output.size(1));
  shape.channels = shape.group_channels = product_size(weight.size(1));
  shape.features = product_size(weight.size(0) / groups);
  shape.head = 1;
  shape.eps = eps;

  const DeviceGuard guard(output.get_device_index());
  Tensor result = torch::stable::empty_like(output);
  if (output.numel() == 0) return result;
  ProductTensors t{scaled, weight, laid_out_like(output, result), result, carry, sums};
  if (carry) t.carry = laid_out_like(*carry, result);
  shape.scaled = strides_of(scaled);
  shape.weight = strides_of(weight);
  shape.output = strides_of(result);
  launch_product(t, shape, tf32);
  return result;
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) {
  m.impl("convolution_epsilon", TORCH_BOX(&pxp::cuda::convolution_epsilon));
}
