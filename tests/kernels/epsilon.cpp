#include "kernels/epsilon.cuh"

#include "harness.h"

using namespace pxp::cuda;
using harness::blocks_for;

struct EpsilonCase {
  // variant 0: positions, a warp a row; 1: positions, a block a row; 2: units; 3: groups. `width` is theirs: threads
  // that share a row.
  int64_t type, variant, vector, width;
  int64_t activation, samples, rows, columns, group, block_rows;
  int64_t carry_sample, carry_row, output_sample, output_row, scaled_sample, scaled_row;
  int64_t sums_sample, sums_which, add, writes, stabilized;
};

// `partials` is null where the sums of the only block are the result.
template <class T, int V>
void run(const EpsilonCase& c, const EpsilonShape& shape, const T* carry, const T* output, T* scaled, Compute<T>* sums,
         Compute<T>* partials) {
  using C = Compute<T>;
  const EpsilonSums<C> table{sums, c.sums_sample, c.sums_which, c.add != 0};
  const int64_t rows = shape.samples * shape.rows;
  if (c.variant < 2) {
    const auto go = [&](auto kernel, int64_t rows_per_block) {
      simulator::launch(kernel, {blocks_for(rows, rows_per_block)}, kThreads, carry, output, scaled, table, shape);
    };
    return c.variant ? go(epsilon_positions<T, V, kThreads>, 1) : go(epsilon_positions<T, V, kWarp>, kThreads / kWarp);
  }
  const EpsilonSums<C> to = partials ? EpsilonSums<C>{partials, 2 * shape.units, shape.units, false} : table;
  if (c.variant == 2) {
    const int64_t tiles = (shape.columns + c.width * V - 1) / (c.width * V);
    simulator::launch(epsilon_units<T, V>, {unsigned(shape.samples * shape.blocks * tiles)}, kThreads, carry, output,
                      scaled, to, shape, int(c.width), tiles);
  } else {
    simulator::launch(epsilon_groups<T, V>, {blocks_for(shape.samples * shape.blocks * shape.units, kThreads / kWarp)},
                      kThreads, carry, output, scaled, to, shape, int(c.width));
  }
  if (!partials) return;
  simulator::launch(epsilon_combine<C>, {blocks_for(2 * shape.samples * shape.units, kThreads)}, kThreads,
                    static_cast<const C*>(partials), table, shape.samples, shape.units, shape.blocks);
}

extern "C" int epsilon(const EpsilonCase* c, double eps, const void* carry, const void* output, void* scaled,
                       void* sums, void* partials) {
  const EpsilonShape shape{c->samples,
                           c->rows,
                           c->columns,
                           c->variant < 2 ? c->rows : c->columns / c->group,
                           c->group,
                           (c->rows + c->block_rows - 1) / c->block_rows,
                           c->block_rows,
                           {c->carry_sample, c->carry_row},
                           {c->output_sample, c->output_row},
                           {c->scaled_sample, c->scaled_row},
                           static_cast<pxp::Activation>(c->activation),
                           c->writes != 0,
                           c->stabilized != 0,
                           eps};
  return harness::guarded([&] {
    harness::for_type(int(c->type), [&](auto type) {
      using T = typename decltype(type)::type;
      const auto go = [&](auto function) {
        function(*c, shape, static_cast<const T*>(carry), static_cast<const T*>(output), static_cast<T*>(scaled),
                 static_cast<Compute<T>*>(sums), static_cast<Compute<T>*>(partials));
      };
      c->vector ? go(run<T, kVector<T>>) : go(run<T, 1>);
    });
  });
}
