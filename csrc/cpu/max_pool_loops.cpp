// The loops of `max_pool` and `max_pool_epsilon`, compiled once per instruction set (PXP_ISA names it).
#include "max_pool_windows.h"

namespace pxp::cpu::PXP_ISA {
namespace {

template <class T>
void pool(const MaxPoolTask& task, int64_t begin, int64_t end) {
  const MaxPoolShape& shape = task.shape;
  const int64_t image = int64_t(shape.axes[0].size) * shape.axes[1].size * shape.channels;
  const int64_t line = shape.axes[1].pooled * shape.channels;
  Windows<T> windows(shape);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / shape.axes[0].pooled;
    windows.template row<false>(static_cast<const Bits<T>*>(task.value) + sample * image,
                                int(row % shape.axes[0].pooled), shape.channels,
                                static_cast<Bits<T>*>(task.result) + row * line, shape.channels);
  }
}

// The carries of those channels in which the position with this number wins, the others' 0; added to `total`, or put
// there.
template <bool kAdd, class T, class C>
void take_won(const Bits<T>* __restrict winners, const T* __restrict carry, Bits<T> number, C* __restrict total,
              int64_t n) {
  if constexpr (std::is_same_v<T, Half>) {
    Half won[kMaxPoolTile];
    float wide[kMaxPoolTile];
    for (int64_t i = 0; i < n; ++i) won[i].bits = winners[i] == number ? carry[i].bits : uint16_t(0);
    widen_row(won, wide, n);
    for (int64_t i = 0; i < n; ++i) total[i] = kAdd ? total[i] + wide[i] : wide[i];
  } else {
    for (int64_t i = 0; i < n; ++i) {
      C won;
      if constexpr (std::is_same_v<T, BFloat16>) {
        won = widen(BFloat16{winners[i] == number ? carry[i].bits : uint16_t(0)});
      } else {
        won = winners[i] == number ? carry[i] : C(0);
      }
      total[i] = kAdd ? total[i] + won : won;
    }
  }
}

template <class T, class C>
void add_row(const T* __restrict from, C* __restrict total, int64_t n) {
  if constexpr (std::is_same_v<T, Half>) {
    float wide[kMaxPoolTile];
    widen_row(from, wide, n);
    for (int64_t i = 0; i < n; ++i) total[i] += wide[i];
  } else {
    for (int64_t i = 0; i < n; ++i) total[i] += widen(from[i]);
  }
}

// What becomes of the carries of one position. `result` may be `value`.
template <bool kStabilizes, bool kSums, class T, class C>
void finish_as(const C* total, const T* value, T* result, C* sums, C* absolutes, int64_t n, C eps) {
  PXP_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const C z = widen(value[i]);
    C scaled = total[i];
    if constexpr (kSums) {
      const C relevance = scaled * z;
      sums[i] += relevance;
      absolutes[i] += magnitude_of(relevance);
    }
    if constexpr (kStabilizes) scaled *= stabilizing_factor(z, eps);
    result[i] = narrow<T>(scaled);
  }
}

template <bool kStabilizes, bool kSums, class T, class C>
void finish(const C* total, const T* value, T* result, C* sums, C* absolutes, int64_t n, C eps) {
  if constexpr (std::is_same_v<T, Half>) {
    float wide[kMaxPoolTile];
    widen_row(value, wide, n);
    finish_as<kStabilizes, kSums, float, float>(total, wide, wide, sums, absolutes, n, eps);
    narrow_row(wide, result, n);
  } else {
    finish_as<kStabilizes, kSums, T, C>(total, value, result, sums, absolutes, n, eps);
  }
}

template <class T, class C>
struct Finish {
  void (*function)(const C*, const T*, T*, C*, C*, int64_t, C);

  explicit Finish(const MaxPoolTask& task)
      : function(task.stabilizes ? (task.sums ? finish<true, true, T, C> : finish<true, false, T, C>)
                                 : (task.sums ? finish<false, true, T, C> : finish<false, false, T, C>)) {}
};

// The rows of windows over a row of the image are few: their winners are kept as long as they are, in a ring.
template <class T, class C>
void epsilon(const MaxPoolTask& task, int64_t begin, int64_t end) {
  const MaxPoolShape& shape = task.shape;
  const MaxPoolAxis &down = shape.axes[0], &along = shape.axes[1];
  const int64_t channels = shape.channels;
  const int ring = (down.kernel - 1) * down.dilation / down.stride + 1;
  const std::unique_ptr<Bits<T>[]> winners(new Bits<T>[ring * along.pooled * task.tile]);
  const std::unique_ptr<Steps[]> over(new Steps[along.size]);
  for (int i = 0; i < along.size; ++i) over[i] = {along.first_over(i), along.end_over(i)};
  Windows<T> windows(shape);
  const Finish<T, C> finish(task);
  const C eps = C(task.eps);
  C total[kMaxPoolTile], row_sums[2][kMaxPoolTile];
  double sums[2][kMaxPoolTile];

  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / task.tiles, first = item % task.tiles * task.tile;
    const int64_t n = channels - first < task.tile ? channels - first : task.tile;
    const int64_t image = sample * down.size * along.size * channels + first;
    const T* value = static_cast<const T*>(task.value) + image;
    const T* rest = task.rest ? static_cast<const T*>(task.rest) + image : nullptr;
    T* result = static_cast<T*>(task.result) + image;
    const T* carry = static_cast<const T*>(task.carry) + sample * down.pooled * along.pooled * channels + first;
    memset(sums, 0, sizeof sums);
    int known = 0;  // rows of windows whose winners have been found
    for (int row = 0; row < down.size; ++row) {
      const Steps rows{down.first_over(row), down.end_over(row)};
      for (; known < rows.end; ++known) {
        windows.template row<true>(reinterpret_cast<const Bits<T>*>(static_cast<const T*>(value)), known, n,
                                   winners.get() + known % ring * int64_t(along.pooled) * task.tile, task.tile);
      }
      if (task.sums) memset(row_sums, 0, sizeof row_sums);
      for (int column = 0; column < along.size; ++column) {
        bool taken = false;
        for (int i = rows.first; i < rows.end; ++i) {
          const int down_step = down.step_at(i, row);
          if (down_step < 0) continue;
          const Bits<T>* line = winners.get() + i % ring * int64_t(along.pooled) * task.tile;
          for (int j = over[column].first; j < over[column].end; ++j) {
            const int step = along.step_at(j, column);
            if (step < 0) continue;
            const T* from = carry + (int64_t(i) * along.pooled + j) * channels;
            prefetch(from + channels, n);
            (taken ? take_won<true, T, C> : take_won<false, T, C>)(
                line + j * task.tile, from, Bits<T>(down_step * along.kernel + step), total, n);
            taken = true;
          }
        }
        if (!taken) memset(total, 0, sizeof(C) * n);
        const int64_t at = (int64_t(row) * along.size + column) * channels;
        if (rest) add_row(rest + at, total, n);
        finish.function(total, value + at, result + at, row_sums[0], row_sums[1], n, eps);
      }
      if (!task.sums) continue;
      for (int which = 0; which < 2; ++which) {
        for (int64_t i = 0; i < n; ++i) sums[which][i] += row_sums[which][i];
      }
    }
    if (!task.sums) continue;
    for (int which = 0; which < 2; ++which) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t unit = sample * channels + first + i;
        C* to = static_cast<C*>(task.sums) + which * task.sums_which + unit / shape.units * task.sums_image;
        to[unit % shape.units] += C(sums[which][i]);
      }
    }
  }
}

}  // namespace

void max_pool(const MaxPoolTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return pool<double>(task, begin, end);
    case Type::float32: return pool<float>(task, begin, end);
    case Type::bfloat16: return pool<BFloat16>(task, begin, end);
    case Type::float16: return pool<Half>(task, begin, end);
  }
}

void max_pool_epsilon(const MaxPoolTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::float64: return epsilon<double, double>(task, begin, end);
    case Type::float32: return epsilon<float, float>(task, begin, end);
    case Type::bfloat16: return epsilon<BFloat16, float>(task, begin, end);
    case Type::float16: return epsilon<Half, float>(task, begin, end);
  }
}

}  // namespace pxp::cpu::PXP_ISA
