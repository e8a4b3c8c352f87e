// What csrc/kernels/tensor_core.cuh asks of the simulator: copies that land later, and matrices spread over a warp.
#pragma once

#include "simulator.h"

namespace simulator {

inline void copy_async(void* to, const void* from, size_t bytes, bool source) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || (source && reinterpret_cast<uintptr_t>(from) % bytes)) {
    fail("an asynchronous copy of " + std::to_string(bytes) + " bytes between addresses that are no multiples of it");
  }
  Fiber& self = *state.current;
  const AsyncCopy copy{to, from, bytes, source, self.copy_group};
  state.copies == Copies::eager ? copy.land() : self.copies.push_back(copy);
}
inline void copy_async_commit() { ++state.current->copy_group; }
// Lets all copies land but those of the last `pending` groups.
inline void copy_async_wait(unsigned pending) {
  Fiber& self = *state.current;
  const auto due = std::stable_partition(self.copies.begin(), self.copies.end(),
                                         [&](const AsyncCopy& copy) { return copy.group + pending < self.copy_group; });
  std::for_each(self.copies.begin(), due, [](const AsyncCopy& copy) { copy.land(); });
  self.copies.erase(self.copies.begin(), due);
}

// ldmatrix .x4 and mma.sync, as the PTX manual places rows and columns in the lanes' registers.
inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  const auto* rows = exchange_values(row, -1 - transposed);
  const unsigned lane = current_lane();
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (unsigned k = 0; k < 2; ++k) {
      const unsigned other = lane % 4 * 2 + k, line = transposed ? other : lane / 4;
      const uint16_t* start;
      std::memcpy(&start, rows[matrix * 8 + line], sizeof start);
      if (reinterpret_cast<uintptr_t>(start) % 16) fail("a matrix's row starts at no multiple of 16 bytes");
      pair[k] = start[transposed ? lane / 4 : other];
    }
    std::memcpy(&to[matrix], pair, sizeof pair);
  }
}

template <class T, class Value>
void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Value& value) {
  constexpr unsigned kPerRegister = 4 / sizeof(T), kHalf = 4 * kPerRegister;
  const uint32_t both[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto* registers = exchange_values(both, -3);
  const auto element = [&](unsigned lane, unsigned at, unsigned k) {
    T result;
    std::memcpy(&result, registers[lane * 4 + k % kHalf / kPerRegister] + at * 4 + k % kPerRegister * sizeof(T),
                sizeof result);
    return value(result);
  };
  const unsigned lane = current_lane();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float total = 0;
    for (unsigned k = 0; k < 2 * kHalf; ++k) {
      const unsigned high = k >= kHalf;
      total += element(row % 8, (row >= 8) + 2 * high, k) * element(column, 4 + high, k);
    }
    sum[i] += total;
  }
}

}  // namespace simulator
