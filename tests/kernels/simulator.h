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

#include "fibers.h"
#include "narrow_types.h"

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
// When an asynchronous copy lands: at once, which shows what is overwritten too early, or when a wait leaves it no
// choice, which shows what is read too early.
enum class Copies : int { eager, lazy };

constexpr unsigned kWarpSize = 32;
constexpr size_t kGuardBytes = 256;
using LaneBytes = unsigned char[64];

struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes;
  bool source;  // zeros where there is none
  unsigned group;

  void land() const { source ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes); }
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  std::vector<AsyncCopy> copies;
  unsigned copy_group = 0;
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
  alignas(16) LaneBytes values[2][kWarpSize];
};

struct State {
  dim3 grid, block, block_index;
  std::vector<Fiber> fibers;
  std::vector<Exchange> exchanges;
  Fiber* current = nullptr;
  Context scheduler;
  std::function<void()> body;
  unsigned live = 0, at_barrier = 0, barrier_generation = 0;
  int barrier_line = 0;
  std::string error;
  std::vector<unsigned char> dynamic_memory;
  size_t dynamic_bytes = 0;
  Order order = Order::forward;
  Copies copies = Copies::eager;
  unsigned seed = 0;
  unsigned last_blocks = ~0u;  // run only as many of every row of the grid, its last: for grids of billions of threads
};
inline State state;

inline void yield() { change(state.current->context, state.scheduler); }

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

inline unsigned current_lane() { return state.current->index % kWarpSize; }

// Every lane passes a value on; all values, by lane.
template <class T>
const LaneBytes* exchange_values(const T& value, int line) {
  static_assert(sizeof(T) <= sizeof(LaneBytes), "a lane passes too much");
  const unsigned lane = current_lane();
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
  return exchange.values[seen % 2];
}

template <class T>
T shuffle_xor(unsigned mask, T value, unsigned distance, int line) {
  if (mask != 0xffffffffu) fail("only exchanges of whole warps are simulated");
  const auto* values = exchange_values(value, line);
  std::memcpy(&value, values[current_lane() ^ distance], sizeof value);
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

inline unsigned char* dynamic_shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(state.dynamic_memory.data());
  return state.dynamic_memory.data() + (1024 - address % 1024);
}

inline void start_block() {
  poison_shared_memory();
  std::fill(state.dynamic_memory.begin(), state.dynamic_memory.end(), 0xff);
  state.exchanges.assign((state.fibers.size() + kWarpSize - 1) / kWarpSize, Exchange{});
  state.live = unsigned(state.fibers.size());
  state.at_barrier = 0;
  for (unsigned i = 0; i < state.fibers.size(); ++i) {
    Fiber& fiber = state.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    start(fiber.context, fiber.stack.get(), fiber_main);
    fiber.copies.clear();
    fiber.copy_group = 0;
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
      change(state.scheduler, fiber.context);
      if (!state.error.empty()) throw std::runtime_error(state.error);
    }
    if (!progress) {
      const auto stuck = std::find_if(state.fibers.begin(), state.fibers.end(), [](const Fiber& f) { return !f.done; });
      throw std::runtime_error("deadlock: thread " + std::to_string(stuck->index) + " waits in line " +
                               std::to_string(stuck->line));
    }
  }
  const unsigned char* end = dynamic_shared_memory() + state.dynamic_bytes;
  if (std::any_of(end, end + kGuardBytes, [](unsigned char byte) { return byte != 0xff; })) {
    throw std::runtime_error("written past the dynamic shared memory");
  }
}

// kernel<<<grid, threads, bytes>>>(arguments...)
template <class Kernel, class... Arguments>
void launch_with_memory(Kernel kernel, dim3 grid, unsigned threads, size_t bytes, Arguments... arguments) {
  if (!grid.x || !grid.y || grid.y > 65535 || !threads || threads > 1024) throw std::runtime_error("invalid launch");
  state.grid = grid;
  state.block = {threads, 1, 1};
  state.fibers.resize(threads);
  state.error.clear();
  state.dynamic_bytes = bytes;
  state.dynamic_memory.resize(bytes + 1024 + kGuardBytes);
  state.body = [=] { kernel(arguments...); };
  std::mt19937 random(state.seed);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = grid.x - std::min(grid.x, state.last_blocks); x < grid.x; ++x) {
      state.block_index = {x, y, 0};
      run_block(random);
    }
  }
}

// kernel<<<grid, threads>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, Arguments... arguments) {
  launch_with_memory(kernel, grid, threads, 0, arguments...);
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
