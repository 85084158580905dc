// How CPU loops are written: plain C++ that GCC vectorises, compiled once per instruction set and chosen at run time.
//
//   template <class T>
//   GK_MULTIVERSION void scale(const T* x, T* y, int64_t n, float a) { for (...) y[i] = T(float(x[i]) * a); }
//
// A loop must stand in the marked function itself: lambdas and functions that are not inlined do not inherit the target.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define GK_X86_LEVELS
#define GK_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GK_MULTIVERSION
#endif

// Where sums must stay in registers, their number and size cannot be left to the compiler:
//
//   with_registers([&]<int kBytes>() GK_INLINE_LAMBDA { ... register_of<float, kBytes> ... });
//
// calls it with the size of the widest registers there are. All that it calls must be inlined into it.
#define GK_INLINE __attribute__((always_inline)) inline
#define GK_INLINE_LAMBDA __attribute__((always_inline))

namespace gankernels {

template <class A, int kBytes>
struct RegisterOf {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <class A, int kBytes>
using register_of = typename RegisterOf<A, kBytes>::type;

// v is in a register: where it has several uses, GCC would rather load it again for each.
template <class V>
GK_INLINE void in_register([[maybe_unused]] V& v) {
#ifdef GK_X86_LEVELS
  asm("" : "+v"(v));
#endif
}

#ifdef GK_X86_LEVELS
template <class Body>
__attribute__((target("arch=x86-64-v4"))) void with_registers_of_64(const Body& body) {
  body.template operator()<64>();
}
template <class Body>
__attribute__((target("arch=x86-64-v3"))) void with_registers_of_32(const Body& body) {
  body.template operator()<32>();
}
#endif

template <class Body>
void with_registers(const Body& body) {
#ifdef GK_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return with_registers_of_64(body);
  if (__builtin_cpu_supports("x86-64-v3")) return with_registers_of_32(body);
#endif
  body.template operator()<16>();
}

// A pointer to Body::run<kBytes>(args...), compiled for the widest registers there are.
#ifdef GK_X86_LEVELS
template <class Body, class... Args>
__attribute__((target("arch=x86-64-v4"))) void run_with_64(Args... args) {
  Body::template run<64>(args...);
}
template <class Body, class... Args>
__attribute__((target("arch=x86-64-v3"))) void run_with_32(Args... args) {
  Body::template run<32>(args...);
}
#endif
template <class Body, class... Args>
void run_with_16(Args... args) {
  Body::template run<16>(args...);
}
template <class Body, class... Args>
auto run_with_registers() -> void (*)(Args...) {
#ifdef GK_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return run_with_64<Body, Args...>;
  if (__builtin_cpu_supports("x86-64-v3")) return run_with_32<Body, Args...>;
#endif
  return run_with_16<Body, Args...>;
}

}  // namespace gankernels

// Reductions keep this many independent sums: wide enough for two AVX-512 registers of float, and it fixes the order of
// summation whatever the instruction set.
constexpr int kLanes = 32;
