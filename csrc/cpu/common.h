// What the CPU registrations share.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../check.h"
#include "loops.h"

namespace pxp::cpu {

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Type::float64;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    default: return Type::float32;
  }
}

// How many items of `size` elements a thread takes at once: enough to pay for waking it.
inline int64_t grain(int64_t size) { return size < 16384 ? 16384 / (size > 0 ? size : 1) : 1; }

}  // namespace pxp::cpu
