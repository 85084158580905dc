// e^x, its relatives and log(1 + z) as plain arithmetic on floats or doubles, which GCC vectorises where it would not a call of
// libm. Within 2 units in the last place, also near 0; NaN stays NaN; beyond the range of the type the result stays finite.
#pragma once

#include <bit>
#include <cstdint>

#include "vec.h"

namespace gankernels {

template <class A>
struct Format;

template <>
struct Format<float> {
  using Int = int32_t;
  static constexpr float lowest = -87, highest = 88;               // 2^n stays a normal number
  static constexpr float round = 0x1.8p23f;                        // x + round - round is x rounded to an integer
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n * ln2_high is exact
  static constexpr int mantissa = 23, bias = 127, exp_terms = 7, log_terms = 8;
};

template <>
struct Format<double> {
  using Int = int64_t;
  static constexpr double lowest = -708, highest = 709;
  static constexpr double round = 0x1.8p52;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 13, log_terms = 17;
};

template <class A>
constexpr A inverse_factorial(int k) {
  double product = 1;
  for (int i = 2; i <= k; ++i) product *= i;
  return A(1 / product);
}

// e^x = scale (1 + p), |p| < 1/2: x = n ln 2 + r, and the integer n is read off the low bits of n + round.
template <class A>
GK_INLINE void exp_parts(A x, A& scale, A& p) {
  using F = Format<A>;
  using Int = typename F::Int;
  x = x < F::lowest ? F::lowest : x;
  x = x > F::highest ? F::highest : x;
  const A shifted = x * A(1.4426950408889634) + F::round, n = shifted - F::round;
  const A r = (x - n * F::ln2_high) - n * F::ln2_low;
  A series = inverse_factorial<A>(F::exp_terms);  // (e^r - 1) / r = 1 + r/2! + r^2/3! + ...
#pragma GCC unroll 16
  for (int k = F::exp_terms - 1; k > 0; --k) series = series * r + inverse_factorial<A>(k);
  p = r * series;
  scale = std::bit_cast<A>(Int((std::bit_cast<Int>(shifted) + F::bias) << F::mantissa));
}

template <class A>
GK_INLINE A fast_exp(A x) {
  A scale, p;
  exp_parts(x, scale, p);
  return scale + scale * p;
}

template <class A>
GK_INLINE A fast_expm1(A x) {
  A scale, p;
  exp_parts(x, scale, p);
  return scale * p + (scale - A(1));
}

// log(1 + z) for 0 <= z <= 1, by the series of 2 atanh(z / (2 + z)).
template <class A>
GK_INLINE A fast_log1p(A z) {
  const A s = z / (A(2) + z), square = s * s;
  A series = 0;
#pragma GCC unroll 20
  for (int k = Format<A>::log_terms; k >= 0; --k) series = series * square + A(1) / A(2 * k + 1);
  return A(2) * s * series;
}

}  // namespace gankernels
