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

// ONLY_TYPE is the code of the one type that is compiled, where it is defined.
#ifdef ONLY_TYPE
constexpr bool is_compiled(int code) { return code == ONLY_TYPE; }
#else
constexpr bool is_compiled(int) { return true; }
#endif

template <int kCode, class T, class Body>
void if_compiled(Body&& body) {
  if constexpr (is_compiled(kCode)) {
    body(Type<T>{});
  } else {
    throw std::runtime_error("a type that is not compiled");
  }
}

template <class Body>
void for_type(int code, Body&& body) {
  switch (code) {
    case 0: return if_compiled<0, double>(body);
    case 1: return if_compiled<1, float>(body);
    case 2: return if_compiled<2, __nv_bfloat16>(body);
    case 3: return if_compiled<3, __half>(body);
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
