// The inner loops on raw memory, compiled once per instruction set; the best one that the processor runs is chosen when
// the library is first used. No torch here.
#pragma once

#include <cstdint>

#include "../formula.h"

namespace pxp::cpu {

enum class Type : int { float64, float32, bfloat16, float16 };

struct EpsilonTask {
  struct Strides {
    int64_t sample, row;
  };
  Type type;
  Activation activation;
  double eps;
  const void* carry;
  const void* output;
  void* scaled;
  void* sums;      // [2, samples, units] float32, or float64 for float64
  void* partials;  // units inside: [samples, blocks, 2, units] in the type of `sums`
  int64_t samples, rows, columns, units, group;
  int64_t block_rows, blocks;  // units inside: every sample's rows in `blocks` blocks
  Strides carry_strides, output_strides, scaled_strides;
};

struct LayerNormTask {
  Type type;
  double eps;
  const void* carry;  // [rows, columns], contiguous like the three that follow
  const void* output;
  const void* residual;  // or null
  void* result;
  const void* rstd;    // [rows], float32, or float64 for float64
  const void* weight;  // [columns] in the type of `rstd`, or null
  int64_t rows, columns;
};

struct Loops {
  const char* name;
  // Positions inside: rows [begin, end) of all samples' rows, complete with their sums.
  void (*epsilon_positions)(const EpsilonTask&, int64_t begin, int64_t end);
  // Units inside: blocks [begin, end) of all samples' blocks, their sums left in `partials`.
  void (*epsilon_units)(const EpsilonTask&, int64_t begin, int64_t end);
  // Units inside: the blocks' partials of samples [begin, end) added up.
  void (*epsilon_combine)(const EpsilonTask&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNormTask&, int64_t begin, int64_t end);
};

// The loops for this processor. PXP_ISA=baseline|avx2|avx512 in the environment asks for fewer instructions.
const Loops& loops();

#define PXP_DECLARE_LOOPS(isa)                                  \
  namespace isa {                                               \
  void epsilon_positions(const EpsilonTask&, int64_t, int64_t); \
  void epsilon_units(const EpsilonTask&, int64_t, int64_t);     \
  void epsilon_combine(const EpsilonTask&, int64_t, int64_t);   \
  void layer_norm(const LayerNormTask&, int64_t, int64_t);      \
  }
PXP_DECLARE_LOOPS(baseline)
PXP_DECLARE_LOOPS(avx2)
PXP_DECLARE_LOOPS(avx512)
#undef PXP_DECLARE_LOOPS

}  // namespace pxp::cpu
