// The loops of `epsilon`, `epsilon_` and `unit_sums_`, compiled once per instruction set (PXP_ISA names it).
#include "epsilon_rule.h"
#include "vector.h"

namespace pxp::cpu::PXP_ISA {
namespace {

template <class T, class C>
struct Chunk {
  static constexpr bool kHalf = std::is_same_v<T, Half>;
  using Stored = std::conditional_t<kHalf, float, T>;
  Functions<Stored, C> functions;
  C eps;
  bool write;
  C relevance[kChunk + kPadding];

  explicit Chunk(const EpsilonTask& task)
      : functions(functions_for<Stored, C>(task)), eps(C(task.eps)), write(writes(task.pass)) {}

  void operator()(const T* carry, const T* output, T* scaled, int64_t n) {
    if constexpr (kHalf) {
      float wide_carry[kChunk], wide_output[kChunk], wide_scaled[kChunk];
      widen_row(carry, wide_carry, n);
      widen_row(output, wide_output, n);
      functions.apply(wide_carry, wide_output, wide_scaled, relevance, n, eps);
      if (write) narrow_row(wide_scaled, scaled, n);
    } else {
      functions.apply(carry, output, scaled, relevance, n, eps);
    }
  }
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

bool rows_touch(const EpsilonTask& task) {
  return task.carry_strides.row == task.columns && task.output_strides.row == task.columns &&
         task.scaled_strides.row == task.columns;
}

bool samples_touch(const EpsilonTask& task) {
  const int64_t size = task.rows * task.columns;
  return task.carry_strides.sample == size && task.output_strides.sample == size && task.scaled_strides.sample == size;
}

template <class T>
struct Row {
  const T* carry;
  const T* output;
  T* scaled;

  Row(const EpsilonTask& task, int64_t sample, int64_t row)
      : carry(static_cast<const T*>(task.carry) + sample * task.carry_strides.sample + row * task.carry_strides.row),
        output(static_cast<const T*>(task.output) + sample * task.output_strides.sample +
               row * task.output_strides.row),
        scaled(static_cast<T*>(task.scaled) + sample * task.scaled_strides.sample + row * task.scaled_strides.row) {}
};

// Where the sums of one unit of one sample go.
template <class C>
void put(const EpsilonTask& task, int64_t sample, int64_t unit, C sum, C absolute) {
  C* signed_sum = static_cast<C*>(task.sums) + sample * task.sums_sample + unit;
  C* absolute_sum = signed_sum + task.sums_which;
  *signed_sum = task.add ? *signed_sum + sum : sum;
  *absolute_sum = task.add ? *absolute_sum + absolute : absolute;
}

template <class T, class C>
void scale(const EpsilonTask& task, int64_t begin, int64_t end) {
  Chunk<T, C> chunk(task);
  const bool flat = rows_touch(task) && samples_touch(task);
  const int64_t n = flat ? (end - begin) * task.columns : task.columns;
  for (int64_t row = begin; row < end; row += flat ? end - begin : 1) {
    const Row<T> at(task, row / task.rows, row % task.rows);
    for (int64_t i = 0; i < n; i += kChunk) {
      chunk(at.carry + i, at.output + i, at.scaled + i, least(kChunk, n - i));
    }
  }
}

template <class T, class C>
void positions(const EpsilonTask& task, int64_t begin, int64_t end) {
  Chunk<T, C> chunk(task);
  const int64_t n = task.columns;
  const int64_t together = rows_touch(task) && samples_touch(task) && n <= kChunk ? kChunk / n : 1;
  for (int64_t row = begin; row < end;) {
    const Row<T> at(task, row / task.rows, row % task.rows);
    if (n <= kChunk) {
      const int64_t count = least(together, end - row);
      chunk(at.carry, at.output, at.scaled, count * n);
      for (int64_t k = 0; k < count; ++k, ++row) {
        C sum, absolute;
        sum_row<true>(chunk.relevance + k * n, n, &sum, &absolute);
        put(task, row / task.rows, row % task.rows, sum, absolute);
      }
      continue;
    }
    double sum = 0, absolute = 0;
    for (int64_t i = 0; i < n; i += kChunk) {
      const int64_t length = least(kChunk, n - i);
      chunk(at.carry + i, at.output + i, at.scaled + i, length);
      C part, absolute_part;
      sum_row<true>(chunk.relevance, length, &part, &absolute_part);
      sum += part;
      absolute += absolute_part;
    }
    put(task, row / task.rows, row % task.rows, C(sum), C(absolute));
    ++row;
  }
}

template <class C>
void add_columns(const C* __restrict relevance, C* __restrict sums, C* __restrict absolutes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const C value = relevance[i];
    sums[i] += value;
    absolutes[i] += magnitude_of(value);
  }
}

template <class C>
void add_value(C value, C* sum, C* absolute) {
  *sum += value;
  *absolute += magnitude_of(value);
}

template <class C>
void add_groups(const C* relevance, C* sums, C* absolutes, int64_t n, int64_t group) {
  for (int64_t i = 0; i < n; i += group, ++sums, ++absolutes) {
    C value;
    sum_row<false, C>(relevance + i, group, &value, nullptr);
    add_value(value, sums, absolutes);
  }
}

// One row of channels. Pieces hold whole groups, unless one group is longer than a chunk.
template <class T, class C>
void one_row(Chunk<T, C>& chunk, const Row<T>& at, const EpsilonTask& task, C* sums, C* absolutes) {
  const int64_t n = task.columns, group = task.group;
  if (group > kChunk) {
    for (int64_t unit = 0; unit < task.units; ++unit) {
      C value = 0;
      for (int64_t i = unit * group; i < (unit + 1) * group; i += kChunk) {
        const int64_t length = least(kChunk, (unit + 1) * group - i);
        chunk(at.carry + i, at.output + i, at.scaled + i, length);
        C part;
        sum_row<false, C>(chunk.relevance, length, &part, nullptr);
        value += part;
      }
      add_value(value, sums + unit, absolutes + unit);
    }
    return;
  }
  const int64_t piece = kChunk / group * group;
  for (int64_t i = 0; i < n; i += piece) {
    const int64_t length = least(piece, n - i);
    chunk(at.carry + i, at.output + i, at.scaled + i, length);
    if (group == 1) {
      add_columns(chunk.relevance, sums + i, absolutes + i, length);
    } else {
      add_groups(chunk.relevance, sums + i / group, absolutes + i / group, length, group);
    }
  }
}

template <class T, class C>
void units(const EpsilonTask& task, int64_t begin, int64_t end) {
  Chunk<T, C> chunk(task);
  const int64_t n = task.columns;
  const int64_t together = rows_touch(task) && n <= kChunk ? kChunk / n : 1;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t sample = block / task.blocks;
    const int64_t first = block % task.blocks * task.block_rows;
    const int64_t last = least(first + task.block_rows, task.rows);
    C* sums = static_cast<C*>(task.partials) + block * 2 * task.units;
    C* absolutes = sums + task.units;
    memset(sums, 0, sizeof(C) * 2 * task.units);
    if constexpr (!Chunk<T, C>::kHalf) {
      if (task.group == 1) {
        const Row<T> at(task, sample, first);
        for (int64_t i = 0; i < n; i += kTile) {
          chunk.functions.apply_rows(at.carry + i, at.output + i, at.scaled + i, sums + i, absolutes + i, last - first,
                                     least(kTile, n - i), task);
        }
        continue;
      }
    }
    for (int64_t row = first; row < last;) {
      const Row<T> at(task, sample, row);
      const int64_t count = least(together, last - row);
      if (count == 1) {
        one_row(chunk, at, task, sums, absolutes);
      } else {
        chunk(at.carry, at.output, at.scaled, count * n);
        for (int64_t k = 0; k < count; ++k) {
          const C* relevance = chunk.relevance + k * n;
          if (task.group == 1) {
            add_columns(relevance, sums, absolutes, n);
          } else {
            add_groups(relevance, sums, absolutes, n, task.group);
          }
        }
      }
      row += count;
    }
  }
}

template <class C>
void combine(const EpsilonTask& task, int64_t begin, int64_t end) {
  const int64_t units = task.units;
  for (int64_t sample = begin; sample < end; ++sample) {
    for (int64_t which = 0; which < 2; ++which) {
      const C* partials = static_cast<const C*>(task.partials) + (sample * task.blocks * 2 + which) * units;
      C* sums = static_cast<C*>(task.sums) + which * task.sums_which + sample * task.sums_sample;
      for (int64_t start = 0; start < units; start += 256) {
        const int64_t count = least(256, units - start);
        double total[256] = {};
        for (int64_t block = 0; block < task.blocks; ++block) {
          const C* part = partials + block * 2 * units + start;
          for (int64_t i = 0; i < count; ++i) total[i] += part[i];
        }
        C* to = sums + start;
        if (task.add) {
          for (int64_t i = 0; i < count; ++i) to[i] += C(total[i]);
        } else {
          for (int64_t i = 0; i < count; ++i) to[i] = C(total[i]);
        }
      }
    }
  }
}

}  // namespace

void epsilon_scale(const EpsilonTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return scale<double, double>(task, begin, end);
    case Type::float32: return scale<float, float>(task, begin, end);
    case Type::bfloat16: return scale<BFloat16, float>(task, begin, end);
    case Type::float16: return scale<Half, float>(task, begin, end);
  }
}

void epsilon_positions(const EpsilonTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return positions<double, double>(task, begin, end);
    case Type::float32: return positions<float, float>(task, begin, end);
    case Type::bfloat16: return positions<BFloat16, float>(task, begin, end);
    case Type::float16: return positions<Half, float>(task, begin, end);
  }
}

void epsilon_units(const EpsilonTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return units<double, double>(task, begin, end);
    case Type::float32: return units<float, float>(task, begin, end);
    case Type::bfloat16: return units<BFloat16, float>(task, begin, end);
    case Type::float16: return units<Half, float>(task, begin, end);
  }
}

void epsilon_combine(const EpsilonTask& task, int64_t begin, int64_t end) {
  task.type == Type::float64 ? combine<double>(task, begin, end) : combine<float>(task, begin, end);
}

}  // namespace pxp::cpu::PXP_ISA
