// The inner loops on raw memory, compiled once per instruction set; the best one that the processor runs is chosen when
// the library is first used. No torch here.
#pragma once

#include <cstdint>

#include "../formula.h"
#include "../max_pool_window.h"

namespace pxp::cpu {

enum class Type : int { float64, float32, bfloat16, float16 };

// What a pass over carry and output leaves behind: the scaled carry, the sums of the units, or both; the sums of what
// comes into the stabilizer, or of what comes out of it.
enum class Pass : int { scale, sum, scale_and_sum, scale_and_sum_stabilized };

struct EpsilonTask {
  struct Strides {
    int64_t sample, row;
  };
  Type type;
  Activation activation;
  Pass pass;
  bool add;  // to what `sums` holds
  double eps;
  const void* carry;
  const void* output;
  void* scaled;    // may be `carry`
  void* sums;      // [2, samples, units] float32, or float64 for float64: units are neighbours
  void* partials;  // units inside: [samples, blocks, 2, units] in the type of `sums`
  int64_t samples, rows, columns, units, group;
  int64_t block_rows, blocks;  // units inside: every sample's rows in `blocks` blocks
  Strides carry_strides, output_strides, scaled_strides;
  int64_t sums_which, sums_sample;  // strides of `sums`
};

struct LayerNormTask {
  Type type;
  double eps;
  const void* carry;  // [rows, columns], contiguous like the four that follow
  const void* output;
  const void* residual;  // or null
  const void* join;      // or null
  void* result;          // may be `residual`
  const void* rstd;      // [rows], float32, or float64 for float64
  const void* weight;    // [columns] in the type of `rstd`, or null
  int64_t rows, columns;
};

struct ShareTask {
  Type type;
  Form form;
  bool given;  // `carry` holds relevance
  double eps, first, second;
  void* carry;  // dense, with the strides of the two that follow
  const void* output;
  void* product;
};

struct AddReluTask {
  Type type;
  const void* a;  // all three lie in memory alike, densely
  const void* b;
  void* result;
};

// Channels that are pooled together at most.
constexpr int64_t kMaxPoolTile = 512;

struct MaxPoolTask {
  Type type;
  bool stabilizes;
  double eps;
  const void* value;  // [sample][row][column][channel], like all that follow but `sums`
  const void* carry;
  const void* rest;  // or null
  void* result;      // of `max_pool_epsilon` it may be `value`
  void* sums;        // [2, images, units], added to; or null
  int64_t sums_which, sums_image;
  int64_t tile, tiles;  // the channels in tiles
  MaxPoolShape shape;
};

struct Loops {
  const char* name;
  // No sums: rows [begin, end) of all samples' rows.
  void (*epsilon_scale)(const EpsilonTask&, int64_t begin, int64_t end);
  // Positions inside: rows [begin, end) of all samples' rows, complete with their sums.
  void (*epsilon_positions)(const EpsilonTask&, int64_t begin, int64_t end);
  // Units inside: blocks [begin, end) of all samples' blocks, their sums left in `partials`.
  void (*epsilon_units)(const EpsilonTask&, int64_t begin, int64_t end);
  // Units inside: the blocks' partials of samples [begin, end) added up.
  void (*epsilon_combine)(const EpsilonTask&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNormTask&, int64_t begin, int64_t end);
  void (*share)(const ShareTask&, int64_t begin, int64_t end);
  void (*add_relu)(const AddReluTask&, int64_t begin, int64_t end);
  // Rows [begin, end) of all samples' rows of windows.
  void (*max_pool)(const MaxPoolTask&, int64_t begin, int64_t end);
  // Tiles [begin, end) of all samples' tiles, complete with their sums.
  void (*max_pool_epsilon)(const MaxPoolTask&, int64_t begin, int64_t end);
};

// The loops for this processor. PXP_ISA=baseline|avx2|avx512 in the environment asks for fewer instructions.
const Loops& loops();

#define PXP_DECLARE_LOOPS(isa)                                  \
  namespace isa {                                               \
  void epsilon_scale(const EpsilonTask&, int64_t, int64_t);     \
  void epsilon_positions(const EpsilonTask&, int64_t, int64_t); \
  void epsilon_units(const EpsilonTask&, int64_t, int64_t);     \
  void epsilon_combine(const EpsilonTask&, int64_t, int64_t);   \
  void layer_norm(const LayerNormTask&, int64_t, int64_t);      \
  void share(const ShareTask&, int64_t, int64_t);               \
  void add_relu(const AddReluTask&, int64_t, int64_t);          \
  void max_pool(const MaxPoolTask&, int64_t, int64_t);          \
  void max_pool_epsilon(const MaxPoolTask&, int64_t, int64_t);  \
  }
PXP_DECLARE_LOOPS(baseline)
PXP_DECLARE_LOOPS(avx2)
PXP_DECLARE_LOOPS(avx512)
#undef PXP_DECLARE_LOOPS

}  // namespace pxp::cpu
