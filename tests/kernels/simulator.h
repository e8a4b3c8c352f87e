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
#if !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__)
#define SIMULATOR_UCONTEXT  // elsewhere, and where the sanitizer must know of a change of stacks
#include <ucontext.h>
#endif

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
// When an asynchronous copy lands: at once, which shows what is overwritten too early, or when a wait leaves it no
// choice, which shows what is read too early.
enum class Copies : int { eager, lazy };

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kExchangeBytes = 64, kGuardBytes = 256;

#ifdef SIMULATOR_UCONTEXT
using Context = ucontext_t;
inline void start(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
inline void change(Context& from, Context& to) { swapcontext(&from, &to); }
#else
// The registers that a call preserves lie on the stack; swapcontext would also ask the system for the signal mask, and
// threads of tensor-core kernels change hundreds of thousands of times.
using Context = void*;
__attribute__((naked, noinline, used)) inline void change(Context& /*from*/, Context& /*to*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
inline void start(Context& context, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + kStackBytes) & ~uintptr_t(15));
  *--top = nullptr;  // where a return address would be: nobody returns from `entry`
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#endif

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
  alignas(16) unsigned char values[2][kWarpSize][kExchangeBytes];
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
const unsigned char (*exchange_values(const T& value, int line))[kExchangeBytes] {
  static_assert(sizeof(T) <= kExchangeBytes, "a lane passes too much");
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
  const auto due = std::stable_partition(self.copies.begin(), self.copies.end(), [&](const AsyncCopy& copy) {
    return copy.group + pending < self.copy_group;
  });
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
    for (unsigned x = 0; x < grid.x; ++x) {
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
