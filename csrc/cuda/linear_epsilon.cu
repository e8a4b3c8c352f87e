#include "product.h"

namespace pxp::cuda {
namespace {

// [N, *, C] as an image one row high; nothing where the positions have no common stride.
std::optional<ImageStrides> strides_of(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  ImageStrides result{tensor.stride(0), tensor.size(last) == 1 ? 1 : tensor.stride(last), {0, 0}};
  if (tensor.size(0) == 1) result.sample = 0;
  int64_t inner = 1;
  for (int64_t d = last - 1; d > 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (inner == 1) {
      result.axis[1] = tensor.stride(d);
    } else if (tensor.stride(d) != result.axis[1] * inner) {
      return std::nullopt;
    }
    inner *= tensor.size(d);
  }
  return result;
}

Tensor linear_epsilon(const Tensor& scaled, const Tensor& weight, const Tensor& output, std::optional<Tensor> carry,
                      std::optional<Tensor> sums, double eps, int64_t activation, int64_t group,
                      bool stabilized_sums, bool tf32) {
  const char* op = "linear_epsilon";
  STD_TORCH_CHECK(output.dim() >= 2 && weight.dim() == 2 && scaled.dim() == output.dim(), op,
                  ": scaled must be [N, *, O], weight [O, I], output [N, *, I]");
  const int64_t last = output.dim() - 1, channels = output.size(last);
  bool fit = scaled.size(last) == weight.size(0) && channels == weight.size(1);
  for (int64_t d = 0; d < last; ++d) fit &= scaled.size(d) == output.size(d);
  STD_TORCH_CHECK(fit, op, ": scaled must be [N, *, O], weight [O, I], output [N, *, I]");
  STD_TORCH_CHECK(group >= 1 && channels % group == 0, op, ": group must divide the channels");
  check_product(op, scaled, weight, output, carry, sums, channels / group, eps);

  ProductShape shape{};
  shape.activation = activation_of(activation);
  const DeviceGuard guard(output.get_device_index());
  Tensor result = torch::stable::empty_like(output);
  if (output.numel() == 0) return result;
  const int64_t positions = output.numel() / output.size(0) / channels;
  shape.samples = output.size(0);
  for (int axis = 0; axis < 2; ++axis) {
    shape.size[axis] = shape.above[axis] = axis ? product_size(positions) : 1;
    shape.taps[axis] = shape.stride[axis] = shape.dilation[axis] = 1;
  }
  shape.groups = 1;
  shape.channels = shape.group_channels = product_size(channels);
  shape.features = product_size(weight.size(0));
  shape.head = product_size(group);
  shape.stabilized_sums = stabilized_sums;
  shape.eps = eps;

  ProductTensors t{scaled, weight, output, result, carry, sums};
  if (!strides_of(result)) t.result = torch::stable::empty_like(torch::stable::contiguous(output));
  if (!strides_of(scaled)) t.scaled = torch::stable::contiguous(scaled);
  t.output = laid_out_like(output, t.result);
  if (carry) t.carry = laid_out_like(*carry, t.result);
  shape.output = *strides_of(t.result);
  shape.scaled = *strides_of(t.scaled);
  shape.weight = {shape.features == 1 ? 0 : weight.stride(0), channels == 1 ? 1 : weight.stride(1), {0, 0}};
  launch_product(t, shape, tf32);
  if (!strides_of(result)) torch::stable::copy_(result, t.result);
  return result;
}

}  // namespace
}  // namespace pxp::cuda

STABLE_TORCH_LIBRARY_IMPL(pxp_fast, CUDA, m) { m.impl("linear_epsilon", TORCH_BOX(&pxp::cuda::linear_epsilon)); }
