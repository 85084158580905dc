// Sums of shifted rows, the arithmetic of resampling: an output row is a sum of input rows, and its columns of one phase are a
// sum of that row, shifted by one pixel after the other.
#pragma once

#include <cstdint>

namespace gankernels {

// The sum of weights[k] times the numbers from places[k] on.
template <class A>
struct Taps {
  const A* weights;
  const int64_t* places;
  int64_t count;
};

// How often a sum is taken: for `rows`, the next of which is `step` further in the input and `out_step` in the output. Where the
// input comes from memory, `fresh` of its rows are new to each.
struct Repeat {
  int64_t rows, step, out_step, fresh = 0;
};

// For sums of float and of double, by loops that are compiled for the usual numbers of taps:
// out[i] = the sum at i < n
template <class A>
void sum_plain(const A* from, Taps<A> taps, int64_t n, A* out, Repeat repeat);
// even[i] and odd[i] = the sum at 2 i and at 2 i + 1, below n
template <class A>
void sum_apart(const A* from, Taps<A> taps, int64_t n, A* even, A* odd, Repeat repeat);
// out[2 i] and out[2 i + 1] = the sums of `even` and of `odd` at i < n
template <class A>
void sum_in_turn(const A* from, Taps<A> even, Taps<A> odd, int64_t n, A* out, Repeat repeat);

}  // namespace gankernels
