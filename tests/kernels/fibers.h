// Changing from one stack to another, and back.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__)
#define SIMULATOR_UCONTEXT  // elsewhere, and where the sanitizer must know of a change of stacks
#include <ucontext.h>
#endif

namespace simulator {

constexpr size_t kStackBytes = 256 << 10;

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

}  // namespace simulator
