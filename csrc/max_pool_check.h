// The arguments of the operators of `max_pool`, checked, and laid out as loops and kernels want them.
//
//   channels-last   [sample][row][column][channel]
//   contiguous      the same, every channel a sample of one channel
#pragma once

#include "check.h"
#include "max_pool_window.h"

namespace pxp {

struct MaxPoolTensors {
  Tensor value, result;
  std::optional<Tensor> carry, rest, sums;
  MaxPoolShape shape;
};

inline bool is_channels_last(const Tensor& value) {
  const int64_t c = value.size(1), h = value.size(2), w = value.size(3);
  const int64_t strides[4] = {c * h * w, 1, w * c, c};
  bool fits = !value.is_contiguous();
  for (int64_t d = 0; d < 4; ++d) fits &= value.size(d) == 1 || value.stride(d) == strides[d];
  return fits;
}

inline Tensor laid_out(const Tensor& value, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  if (channels_last && is_channels_last(value)) return value;
  return torch::stable::contiguous(value, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline MaxPoolShape max_pool_shape(const char* op, const Tensor& value, const std::vector<int64_t>& kernel,
                                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, bool ceil_mode) {
  check_floating(value, op, "value");
  STD_TORCH_CHECK(value.dim() == 4, op, ": value must be [N, C, H, W]");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": kernel, stride, padding and dilation must be two numbers each");
  MaxPoolShape shape{};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t k = kernel[axis], s = stride[axis], p = padding[axis], d = dilation[axis];
    const int64_t size = value.size(2 + axis);
    STD_TORCH_CHECK(k >= 1 && s >= 1 && p >= 0 && d >= 1 && 2 * p <= k && (p == 0 || d <= size), op,
                    ": kernel, stride, padding or dilation out of range");
    const int64_t reach = size + 2 * p - d * (k - 1) - 1 + (ceil_mode ? s - 1 : 0);
    int64_t pooled = reach < 0 ? 0 : reach / s + 1;
    if (ceil_mode && (pooled - 1) * s >= size + p) --pooled;
    STD_TORCH_CHECK(pooled >= 1 && size < (int64_t(1) << 30) && s < (int64_t(1) << 30) && d * k < (int64_t(1) << 30),
                    op, ": value is too small, or too large, for the window");
    shape.axes[axis] = {int(size), int(pooled), int(k), int(s), int(p), int(d)};
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= kLargestWindow, op, ": the window has more than ", kLargestWindow,
                  " positions");
  STD_TORCH_CHECK(value.size(2) * value.size(3) <= 0x7fffffff, op, ": an image is too large");
  const bool channels_last = is_channels_last(value);
  shape.samples = channels_last ? value.size(0) : value.size(0) * value.size(1);
  shape.channels = channels_last ? value.size(1) : 1;
  shape.units = value.size(1);
  return shape;
}

inline MaxPoolTensors prepare_max_pool(const Tensor& value, const std::vector<int64_t>& kernel,
                                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                       const std::vector<int64_t>& dilation, bool ceil_mode) {
  const MaxPoolShape shape = max_pool_shape("max_pool", value, kernel, stride, padding, dilation, ceil_mode);
  const bool channels_last = is_channels_last(value);
  const int64_t n = value.size(0), c = value.size(1), h = shape.axes[0].pooled, w = shape.axes[1].pooled;
  Tensor result = torch::stable::new_empty(value, channels_last ? std::initializer_list<int64_t>{n, h, w, c}
                                                                : std::initializer_list<int64_t>{n, c, h, w});
  if (channels_last) result = torch::stable::transpose(torch::stable::transpose(result, 2, 3), 1, 2);
  return {laid_out(value, channels_last), result, std::nullopt, std::nullopt, std::nullopt, shape};
}

// `in_place`: the result is `value`, or what is to be copied there.
inline MaxPoolTensors prepare_max_pool_epsilon(const Tensor& carry, const Tensor& value,
                                               const std::optional<Tensor>& rest, const std::optional<Tensor>& sums,
                                               const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                                               const std::vector<int64_t>& padding,
                                               const std::vector<int64_t>& dilation, bool ceil_mode,
                                               std::optional<double> eps, bool in_place) {
  const char* op = "max_pool_epsilon";
  const MaxPoolShape shape = max_pool_shape(op, value, kernel, stride, padding, dilation, ceil_mode);
  STD_TORCH_CHECK(carry.dim() == 4 && carry.size(0) == value.size(0) && carry.size(1) == value.size(1) &&
                      carry.size(2) == shape.axes[0].pooled && carry.size(3) == shape.axes[1].pooled &&
                      carry.scalar_type() == value.scalar_type() && carry.device() == value.device(),
                  op, ": carry must be what the pooling makes of value, in shape, dtype and device");
  STD_TORCH_CHECK(!eps || *eps >= 0, op, ": eps must not be negative");
  if (rest) check_like(*rest, value, op, "rest");
  if (sums) {
    STD_TORCH_CHECK(sums->scalar_type() == compute_type(value.scalar_type()) && sums->device() == value.device() &&
                        sums->dim() == 3 && sums->size(0) == 2 && sums->size(1) == value.size(0) &&
                        sums->size(2) == value.size(1) && (value.size(1) < 2 || sums->stride(2) == 1),
                    op, ": sums must be [2, samples, channels] with neighbouring channels, in the dtype of sums");
    check_apart(op, "sums", *sums);
  }
  if (in_place) check_apart(op, "value", value);
  const bool channels_last = is_channels_last(value);
  const Tensor dense = laid_out(value, channels_last);
  MaxPoolTensors t{dense, in_place ? dense : torch::stable::empty_like(dense), laid_out(carry, channels_last),
                   rest,  sums,                                                shape};
  if (rest) t.rest = laid_out(*rest, channels_last);
  return t;
}

}  // namespace pxp
