// What the C entry points of the simulated kernels share.
#pragma once

#include "simulator.h"

namespace harness {

inline std::string error;

// 0, or 1 with the message in `error`.
template <class Body>
int guarded(Body&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& exception) {
    error = exception.what();
    return 1;
  }
}

template <class T>
struct Type {
  using type = T;
};

template <class Body>
void for_type(int code, Body&& body) {
  switch (code) {
    case 1: return body(Type<float>{});
#ifndef FLOAT_ONLY
    case 0: return body(Type<double>{});
    case 2: return body(Type<__nv_bfloat16>{});
    case 3: return body(Type<__half>{});
#endif
    default: throw std::runtime_error("unknown type");
  }
}

inline unsigned blocks_for(int64_t items, int64_t per_block) { return unsigned((items + per_block - 1) / per_block); }

}  // namespace harness

extern "C" {
const char* last_error() { return harness::error.c_str(); }
void set_last_blocks(unsigned count) { simulator::state.last_blocks = count; }
void set_order(int order, unsigned seed) {
  simulator::state.order = static_cast<simulator::Order>(order);
  simulator::state.seed = seed;
}
void set_copies(int copies) { simulator::state.copies = static_cast<simulator::Copies>(copies); }
}
