// Chooses among the loops that were compiled for different instruction sets. PXP_X86_LOOPS is set by the build where
// the compiler made the AVX2 and AVX-512 ones.
#include <cstdlib>
#include <string_view>

#include "loops.h"

namespace pxp::cpu {
namespace {

#define PXP_LOOPS(isa) \
  {#isa,                 isa::epsilon_scale, isa::epsilon_positions, isa::epsilon_units, \
   isa::epsilon_combine, isa::layer_norm,    isa::share,             isa::add_relu,      \
   isa::max_pool,        isa::max_pool_epsilon}

Loops choose() {
#ifdef PXP_X86_LOOPS
  const char* variable = std::getenv("PXP_ISA");
  const std::string_view limit = variable ? variable : "avx512";
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && limit != "baseline";
  if (avx2 && limit != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return PXP_LOOPS(avx512);
  }
  if (avx2) return PXP_LOOPS(avx2);
#endif
  return PXP_LOOPS(baseline);
}

}  // namespace

const Loops& loops() {
  static const Loops chosen = choose();
  return chosen;
}

}  // namespace pxp::cpu
