// What a pooling window covers: for the loops and kernels of `max_pool`, without torch.
#pragma once

#include <cstdint>

#include "formula.h"

namespace pxp {

// So many positions may a window have; each has a number, in reading order.
constexpr int kLargestWindow = 0x7fff;

// Rows or columns.
struct MaxPoolAxis {
  int size, pooled, kernel, stride, padding, dilation;

  // Where the window begins, maybe in the padding.
  PXP_METHOD int start(int window) const { return window * stride - padding; }
  // Its steps that lie inside the image: [first_step, end_step).
  PXP_METHOD int first_step(int window) const {
    const int at = start(window);
    return at < 0 ? (dilation - 1 - at) / dilation : 0;
  }
  PXP_METHOD int end_step(int window) const {
    const int left = size - start(window);
    const int steps = left > 0 ? (left + dilation - 1) / dilation : 0;
    return steps < kernel ? steps : kernel;
  }
  // The windows that reach over a position, not all of which touch it where they are dilated: [first_over, end_over).
  PXP_METHOD int first_over(int position) const {
    const int past = position + padding - (kernel - 1) * dilation;
    return past > 0 ? (past + stride - 1) / stride : 0;
  }
  PXP_METHOD int end_over(int position) const {
    const int end = (position + padding) / stride + 1;
    return end < pooled ? end : pooled;
  }
  // Which step of a window over it a position is; -1 where it lies between two.
  PXP_METHOD int step_at(int window, int position) const {
    const int offset = position - start(window);
    return offset % dilation ? -1 : offset / dilation;
  }
};

struct MaxPoolShape {
  int64_t samples, channels;
  int64_t units;  // samples * channels in groups of as many belong to one image
  MaxPoolAxis axes[2];
};

}  // namespace pxp
