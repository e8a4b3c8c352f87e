// Runs CUDA kernels on the host, unmodified: one block at a time, one fiber per thread. No CUDA toolkit is needed; what
// the kernels use of CUDA is defined here.
//
// A fiber runs until it must wait (a barrier, a warp exchange) or ends; which one runs next is the `Order`. A kernel
// that lacks a barrier gives another result in at least one order, because shared memory starts every block as NaN and
// nothing but a barrier makes the writer run before the reader. Divergent barriers, lanes missing from an exchange and
// deadlocks are errors.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// The only thread-local variables of the module, so that their segment can be found and filled with NaN.
#define __shared__ static thread_local

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace simulator {

enum class Order : int { forward, reverse, random, skew };  // skew: one warp runs as far ahead of the others as it can

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackBytes = 256 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  unsigned index = 0;
  bool done = false;
  const unsigned* waiting_for = nullptr;  // a generation counter; runnable when it has moved on from `generation`
  unsigned generation = 0;
  int line = 0;
};

// What the 32 lanes of a warp pass to each other; two generations, as the fast lanes may already deposit the next
// values.
struct Exchange {
  unsigned arrived = 0, generation = 0;
  int line = 0;
  alignas(16) unsigned char values[2][kWarpSize][16];
};

struct State {
  dim3 grid, block, block_index;
  std::vector<Fiber> fibers;
  std::vector<Exchange> exchanges;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  std::function<void()> body;
  unsigned live = 0, at_barrier = 0, barrier_generation = 0;
  int barrier_line = 0;
  std::string error;
  Order order = Order::forward;
  unsigned seed = 0;
  unsigned last_blocks = ~0u;  // run only as many of every row of the grid, its last: for grids of billions of threads
};
inline State state;

inline void yield() { swapcontext(&state.current->context, &state.scheduler); }

[[noreturn]] inline void fail(const std::string& message) {
  const dim3 b = state.block_index, t = state.current->thread;
  state.error =
      message + " [block " + std::to_string(b.x) + "," + std::to_string(b.y) + " thread " + std::to_string(t.x) + "]";
  for (;;) yield();  // the launch gives the block up
}

inline void wait_for(const unsigned& generation, unsigned seen, int line) {
  Fiber& self = *state.current;
  self.waiting_for = &generation;
  self.generation = seen;
  self.line = line;
  while (generation == seen) yield();
  self.waiting_for = nullptr;
}

inline void open_barrier_if_full() {
  if (state.at_barrier && state.at_barrier == state.live) {
    state.at_barrier = 0;
    ++state.barrier_generation;
  }
}

inline void barrier(int line) {
  if (state.at_barrier == 0) state.barrier_line = line;
  if (state.barrier_line != line) fail("threads wait at different barriers");
  ++state.at_barrier;
  const unsigned seen = state.barrier_generation;
  open_barrier_if_full();
  wait_for(state.barrier_generation, seen, line);
}

template <class T>
T shuffle_xor(unsigned mask, T value, unsigned distance, int line) {
  static_assert(sizeof(T) <= 16, "a lane passes at most 16 bytes");
  if (mask != 0xffffffffu) fail("only exchanges of whole warps are simulated");
  const unsigned lane = state.current->index % kWarpSize;
  Exchange& exchange = state.exchanges[state.current->index / kWarpSize];
  if (exchange.arrived == 0) exchange.line = line;
  if (exchange.line != line) fail("lanes meet in different exchanges");
  const unsigned seen = exchange.generation;
  std::memcpy(exchange.values[seen % 2][lane], &value, sizeof value);
  if (++exchange.arrived == kWarpSize) {
    exchange.arrived = 0;
    ++exchange.generation;
  }
  wait_for(exchange.generation, seen, line);
  std::memcpy(&value, exchange.values[seen % 2][lane ^ distance], sizeof value);
  return value;
}

inline void fiber_main() {
  state.body();
  state.current->done = true;
  --state.live;
  open_barrier_if_full();
  for (;;) yield();
}

// Fills every __shared__ variable of this module with 0xff: NaN in any floating-point type.
inline thread_local unsigned char shared_memory_marker;
inline void poison_shared_memory() {
  volatile unsigned char& marker = shared_memory_marker;
  marker = 0;  // the segment exists from the first access on
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) -> int {
        const auto* marker = &shared_memory_marker;
        auto* start = static_cast<unsigned char*>(info->dlpi_tls_data);
        for (int i = 0; start && i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_TLS && marker >= start && marker < start + header.p_memsz) {
            std::memset(start, 0xff, header.p_memsz);
            return 1;
          }
        }
        return 0;
      },
      nullptr);
}

inline void start_block() {
  poison_shared_memory();
  state.exchanges.assign((state.fibers.size() + kWarpSize - 1) / kWarpSize, Exchange{});
  state.live = unsigned(state.fibers.size());
  state.at_barrier = 0;
  for (unsigned i = 0; i < state.fibers.size(); ++i) {
    Fiber& fiber = state.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.index = i;
    fiber.thread = {i % state.block.x, i / state.block.x, 0};
    fiber.done = false;
    fiber.waiting_for = nullptr;
  }
}

inline void run_block(std::mt19937& random) {
  start_block();
  std::vector<unsigned> order(state.fibers.size());
  std::iota(order.begin(), order.end(), 0u);
  if (state.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (state.order == Order::skew) {  // whole warps, in random order
    std::vector<unsigned> rank(state.exchanges.size());
    std::iota(rank.begin(), rank.end(), 0u);
    std::shuffle(rank.begin(), rank.end(), random);
    std::stable_sort(order.begin(), order.end(),
                     [&](unsigned a, unsigned b) { return rank[a / kWarpSize] < rank[b / kWarpSize]; });
  }
  while (state.live) {
    if (state.order == Order::random) std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    unsigned warp = ~0u;
    for (const unsigned i : order) {
      if (warp != ~0u && i / kWarpSize != warp) break;
      Fiber& fiber = state.fibers[i];
      if (fiber.done || (fiber.waiting_for && *fiber.waiting_for == fiber.generation)) continue;
      progress = true;
      if (state.order == Order::skew) warp = i / kWarpSize;
      state.current = &fiber;
      swapcontext(&state.scheduler, &fiber.context);
      if (!state.error.empty()) throw std::runtime_error(state.error);
    }
    if (!progress) {
      const auto stuck = std::find_if(state.fibers.begin(), state.fibers.end(), [](const Fiber& f) { return !f.done; });
      throw std::runtime_error("deadlock: thread " + std::to_string(stuck->index) + " waits in line " +
                               std::to_string(stuck->line));
    }
  }
}

// kernel<<<grid, threads>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, Arguments... arguments) {
  if (!grid.x || !grid.y || grid.y > 65535 || !threads || threads > 1024) throw std::runtime_error("invalid launch");
  state.grid = grid;
  state.block = {threads, 1, 1};
  state.fibers.resize(threads);
  state.error.clear();
  state.body = [=] { kernel(arguments...); };
  std::mt19937 random(state.seed);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = grid.x - std::min(grid.x, state.last_blocks); x < grid.x; ++x) {
      state.block_index = {x, y, 0};
      run_block(random);
    }
  }
}

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace simulator

#define threadIdx (::simulator::state.current->thread)
#define blockIdx (::simulator::state.block_index)
#define gridDim (::simulator::state.grid)
#define __syncthreads() ::simulator::barrier(__LINE__)
#define __shfl_xor_sync(mask, value, distance) ::simulator::shuffle_xor(mask, value, distance, __LINE__)

// One thread runs at a time: nothing can come between.
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline void __stwb(uint4* at, uint4 value) {
  if (reinterpret_cast<uintptr_t>(at) % 16)
    simulator::fail("a store of 16 bytes to an address that is no multiple of 16");
  std::memcpy(at, &value, sizeof value);
}
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return simulator::bits_float(uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = simulator::float_bits(x);
  return {uint16_t(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Half precision by way of the definition: sign, 5 bits of exponent, 10 of fraction.
struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float sign = x.bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24));
}
inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (x != x) return {0x7fff};
  if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  // Units in the last place are at least 2^-24; nearbyint rounds ties to even.
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -15, -14);
  const int units = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {uint16_t(sign | (((exponent + 14) << 10) + units))};
}
