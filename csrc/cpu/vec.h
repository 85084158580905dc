// How CPU loops are written: plain C++ that GCC vectorises, compiled once per instruction set and chosen at run time.
//
//   template <class T>
//   GK_MULTIVERSION void scale(const T* x, T* y, int64_t n, float a) { for (...) y[i] = T(float(x[i]) * a); }
//
// A loop must stand in the marked function itself: lambdas and functions that are not inlined do not inherit the target.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define GK_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GK_MULTIVERSION
#endif

#define GK_INLINE __attribute__((always_inline)) inline  // and functions marked so do

// Reductions keep this many independent sums: wide enough for two AVX-512 registers of float, and it fixes the order of
// summation whatever the instruction set.
constexpr int kLanes = 32;
