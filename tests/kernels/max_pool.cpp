#include "kernels/max_pool.cuh"

#include "harness.h"

using namespace pxp;
using namespace pxp::cuda;

namespace {

template <class T, int V, bool kNumbers, class Result>
void winners(const MaxPoolShape& shape, const T* value, Result* result) {
  const int64_t items = shape.samples * shape.axes[0].pooled * shape.axes[1].pooled * shape.channels;
  simulator::launch(max_pool_winners<T, V, kNumbers>, {harness::blocks_for(items / V, kThreads)}, kThreads, value,
                    result, shape);
}

template <class T, int V>
void carry(const MaxPoolCarry<T>& at, const MaxPoolShape& shape, int width) {
  const int64_t tiles = (shape.channels + width * V - 1) / (width * V);
  simulator::launch(max_pool_carry<T, V>, {unsigned(shape.samples * at.blocks * tiles)}, kThreads, at, shape, width,
                    tiles);
}

}  // namespace

extern "C" {
int max_pool(int type_code, int vector, const MaxPoolShape* shape, const void* value, void* result) {
  return harness::guarded([&] {
    harness::for_type(type_code, [&](auto type) {
      using T = typename decltype(type)::type;
      const auto go = vector ? winners<T, kVector<T>, false, T> : winners<T, 1, false, T>;
      go(*shape, static_cast<const T*>(value), static_cast<T*>(result));
    });
  });
}

// `numbers` is room for the winners' numbers. `eps` below 0: no stabilizer.
int max_pool_epsilon(int type_code, int vector, const MaxPoolShape* shape, const void* carried, const void* value,
                     const void* rest, void* result, void* numbers, void* partials, void* sums, int64_t sums_which,
                     int64_t sums_image, int64_t width, int64_t blocks, int64_t block_positions, double eps) {
  return harness::guarded([&] {
    harness::for_type(type_code, [&](auto type) {
      using T = typename decltype(type)::type;
      using C = Compute<T>;
      const MaxPoolCarry<T> at{static_cast<const T*>(carried),
                               static_cast<const uint16_t*>(numbers),
                               static_cast<const T*>(value),
                               static_cast<const T*>(rest),
                               static_cast<T*>(result),
                               static_cast<C*>(partials),
                               blocks,
                               block_positions,
                               eps >= 0,
                               eps};
      const auto first = vector ? winners<T, kVector<T>, true, uint16_t> : winners<T, 1, true, uint16_t>;
      first(*shape, at.value, static_cast<uint16_t*>(numbers));
      (vector ? carry<T, kVector<T>> : carry<T, 1>)(at, *shape, int(width));
      if (!partials) return;
      simulator::launch(max_pool_combine<C>, {harness::blocks_for(2 * shape->samples * shape->channels, kThreads)},
                        kThreads, static_cast<const C*>(partials), static_cast<C*>(sums), sums_which, sums_image,
                        *shape, blocks);
    });
  });
}

int64_t max_pool_shape_size() { return sizeof(MaxPoolShape); }
}
