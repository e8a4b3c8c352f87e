// Which position of a window wins: compared as integers in the order of the numbers, so that all types are alike and
// the narrow ones go through as many lanes as fit.
#pragma once

#include <memory>

#include "vector.h"

namespace pxp::cpu::PXP_ISA {
namespace {

template <int bytes>
struct Integer;
template <>
struct Integer<2> {
  using type = int16_t;
};
template <>
struct Integer<4> {
  using type = int32_t;
};
template <>
struct Integer<8> {
  using type = int64_t;
};
template <class T>
using Bits = typename Integer<sizeof(T)>::type;

// The bits of infinity: all that is larger without its sign is NaN.
template <class T>
constexpr Bits<T> infinity() {
  if constexpr (std::is_same_v<T, Half>) return 0x7c00;
  if constexpr (std::is_same_v<T, BFloat16>) return 0x7f80;
  if constexpr (std::is_same_v<T, float>) return 0x7f800000;
  if constexpr (std::is_same_v<T, double>) return 0x7ff0000000000000;
}
template <class T>
constexpr Bits<T> kNan = Bits<T>(~(Bits<T>(1) << (8 * sizeof(T) - 1)));

// A position of a window: where its first channel lies, and its number.
template <class T>
struct Position {
  const Bits<T>* at;
  Bits<T> number;
};

// `Lanes` is Bits<T>, or a vector of them. -0 counts as 0, and every NaN as kNan.
template <class T, class Lanes>
PXP_FORMULA Lanes order_of(Lanes bits) {
  const Lanes sign = Lanes(bits >> int(8 * sizeof(T) - 1)), magnitude = Lanes(bits & kNan<T>);
  const Lanes ordered = Lanes((magnitude ^ sign) - sign);
  return magnitude > infinity<T>() ? Lanes(Lanes{} + kNan<T>) : ordered;
}

// Asks for rows that will be read soon: pieces this short, from several places in turn, no processor foresees.
template <class T>
PXP_FORMULA void prefetch(const T* row, int64_t n) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i + line <= n; i += line) __builtin_prefetch(row + i);
}

// The value, or the number, of the winner among `count` positions, at least 1, for as many channels as there are lanes.
template <class T, class Lanes, bool kNumbers>
PXP_FORMULA void winner(const Position<T>* positions, int count, int64_t channel, Bits<T>* to) {
  Lanes bits;
  memcpy(&bits, positions[0].at + channel, sizeof bits);
  Lanes best = order_of<T>(bits);
  Lanes result = kNumbers ? Lanes(Lanes{} + positions[0].number) : bits;
  for (int i = 1; i < count; ++i) {
    memcpy(&bits, positions[i].at + channel, sizeof bits);
    const Lanes order = order_of<T>(bits);
    // A later NaN takes the place of an earlier one: PyTorch's rule.
    const auto better = (order > best) | (order == kNan<T>);
    best = better ? order : best;
    result = better ? (kNumbers ? Lanes(Lanes{} + positions[i].number) : bits) : result;
  }
  memcpy(to + channel, &result, sizeof result);
}

template <class T, bool kNumbers>
void winners(const Position<T>* positions, int count, int64_t channels, Bits<T>* to) {
  typedef Bits<T> Vector __attribute__((vector_size(kRegister)));
  constexpr int64_t width = kRegister / sizeof(T);
  int64_t channel = 0;
  for (; channel + width <= channels; channel += width) winner<T, Vector, kNumbers>(positions, count, channel, to);
  for (; channel < channels; ++channel) winner<T, Bits<T>, kNumbers>(positions, count, channel, to);
}

// The steps of the windows along an axis that lie inside the image, worked out once.
struct Steps {
  int first, end;
};
inline std::unique_ptr<Steps[]> steps_of(const MaxPoolAxis& axis) {
  std::unique_ptr<Steps[]> steps(new Steps[axis.pooled]);
  for (int i = 0; i < axis.pooled; ++i) steps[i] = {axis.first_step(i), axis.end_step(i)};
  return steps;
}

// Looks through one row of windows at a time, in some channels of a sample.
template <class T>
struct Windows {
  const MaxPoolShape& shape;
  std::unique_ptr<Steps[]> columns;
  std::unique_ptr<Position<T>[]> positions;

  explicit Windows(const MaxPoolShape& shape)
      : shape(shape),
        columns(steps_of(shape.axes[1])),
        positions(new Position<T>[shape.axes[0].kernel * shape.axes[1].kernel]) {}

  // `image` is the sample's first channel of those looked at; `to` [window][channel], `step` from window to window. No
  // window lies altogether in the padding.
  template <bool kNumbers>
  void row(const Bits<T>* image, int window_row, int64_t channels, Bits<T>* to, int64_t step) {
    const MaxPoolAxis &down = shape.axes[0], &along = shape.axes[1];
    const Steps rows{down.first_step(window_row), down.end_step(window_row)};
    const int64_t line = along.size * shape.channels, jump = along.dilation * shape.channels;
    const int64_t next = along.stride * shape.channels;
    for (int window = 0; window < along.pooled; ++window, to += step) {
      int count = 0;
      for (int i = rows.first; i < rows.end; ++i) {
        const Bits<T>* from = image + (down.start(window_row) + int64_t(i) * down.dilation) * line +
                              along.start(window) * shape.channels;
        for (int j = columns[window].first; j < columns[window].end; ++j) {
          positions[count++] = {from + j * jump, Bits<T>(i * along.kernel + j)};
          prefetch(from + j * jump + next, channels);
        }
      }
      winners<T, kNumbers>(positions.get(), count, channels, to);
    }
  }
};

}  // namespace
}  // namespace pxp::cpu::PXP_ISA
