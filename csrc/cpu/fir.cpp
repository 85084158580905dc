// A sum stays in registers; so do its weights, where their number is known to the compiler.
#include "fir.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "vec.h"

namespace gankernels {
namespace {

constexpr int kAny = 0;  // taps, of which the compiler does not know how many

// body.operator()<V, kCount>(i) for blocks of kCount registers V, from the number i on, that cover n numbers. Blocks may overlap;
// where a register is too wide, V is a number.
template <class A, int kBytes, class Body>
GK_INLINE void in_blocks(int64_t n, const Body& body) {
  using V = register_of<A, kBytes>;
  constexpr int64_t one = kBytes / sizeof(A), two = 2 * one;
  int64_t i = 0;
  for (; i + two <= n; i += two) body.template operator()<V, 2>(i);
  if (n - i > one && i > 0)
    body.template operator()<V, 2>(n - two);
  else if (n >= one)
    for (; i < n; i += one) body.template operator()<V, 1>(std::min(i, n - one));
  else
    for (; i < n; ++i) body.template operator()<A, 1>(i);
}

// sum += weight * the register from `from` on
template <class V, class A>
GK_INLINE void add(V& sum, A weight, const A* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  sum += weight * value;
}

template <class A, class V>
GK_INLINE void store(A* out, const V& value) {
  std::memcpy(out, &value, sizeof(V));
}

// out = the numbers of a and b in turn.
template <class A, class V>
GK_INLINE void store_in_turn(A* out, const V& a, const V& b) {
  if constexpr (std::is_same_v<V, A>) {
    out[0] = a, out[1] = b;
  } else {
    constexpr int lanes = sizeof(V) / sizeof(A);
    [&]<int... l>(std::integer_sequence<int, l...>) GK_INLINE_LAMBDA {
      store(out, __builtin_shufflevector(a, b, (l % 2 * lanes + l / 2)...));
      store(out + lanes, __builtin_shufflevector(a, b, (l % 2 * lanes + lanes / 2 + l / 2)...));
    }(std::make_integer_sequence<int, lanes>());
  }
}

// even, odd = the numbers of a block in turn.
template <class A, class V, int kCount>
GK_INLINE void store_apart(A* even, A* odd, const V (&values)[kCount]) {
  constexpr int lanes = sizeof(V) / sizeof(A);
  if constexpr (kCount == 2 && lanes > 1) {
    [&]<int... l>(std::integer_sequence<int, l...>) GK_INLINE_LAMBDA {
      store(even, __builtin_shufflevector(values[0], values[1], (2 * l)...));
      store(odd, __builtin_shufflevector(values[0], values[1], (2 * l + 1)...));
    }(std::make_integer_sequence<int, lanes>());
  } else if constexpr (lanes > 1) {
    [&]<int... l>(std::integer_sequence<int, l...>) GK_INLINE_LAMBDA {
      const V both = __builtin_shufflevector(values[0], values[0], (l % (lanes / 2) * 2 + l / (lanes / 2))...);
      std::memcpy(even, &both, sizeof(V) / 2);
      std::memcpy(odd, reinterpret_cast<const A*>(&both) + lanes / 2, sizeof(V) / 2);
    }(std::make_integer_sequence<int, lanes>());
  } else {
    *even = values[0];
  }
}

// A sum's taps, of whose number kTaps the compiler knows.
template <class A, int kTaps>
struct Known {
  const A* from[kTaps];
  A weights[kTaps];

  GK_INLINE Known(const A* row, Taps<A> taps) {
    for (int k = 0; k < kTaps; ++k) from[k] = row + taps.places[k], weights[k] = taps.weights[k];
  }

  template <class V, int kCount>
  GK_INLINE void add_up(int64_t i, V (&sum)[kCount]) const {
    for (int m = 0; m < kCount; ++m) {
      sum[m] = V{};
#pragma GCC unroll 16
      for (int k = 0; k < kTaps; ++k) add(sum[m], weights[k], from[k] + i + m * int64_t(sizeof(V) / sizeof(A)));
    }
  }
};

template <class A>
struct Known<A, kAny> {
  const A* row;
  Taps<A> taps;

  template <class V, int kCount>
  GK_INLINE void add_up(int64_t i, V (&sum)[kCount]) const {
    for (V& s : sum) s = V{};
    for (int64_t k = 0; k < taps.count; ++k)
      for (int m = 0; m < kCount; ++m)
        add(sum[m], taps.weights[k], row + taps.places[k] + i + m * int64_t(sizeof(V) / sizeof(A)));
  }
};

// The sums of two rows at a time, the second of which begins kStep taps further: what both read is loaded once.
template <class A, int kTaps, int kStep>
struct Pair {
  const A* from;
  int64_t spacing;
  A weights[kTaps];

  GK_INLINE Pair(const A* row, Taps<A> taps) : from(row + taps.places[0]), spacing(taps.places[1] - taps.places[0]) {
    for (int k = 0; k < kTaps; ++k) weights[k] = taps.weights[k];
  }

  template <class V, int kCount>
  GK_INLINE void add_up(int64_t i, V (&first)[kCount], V (&second)[kCount]) const {
    for (int m = 0; m < kCount; ++m) first[m] = second[m] = V{};
    const A* row = from + i;
#pragma GCC unroll 16
    for (int k = 0; k < kTaps + kStep; ++k, row += spacing)
      for (int m = 0; m < kCount; ++m) {
        V value;
        std::memcpy(&value, row + m * int64_t(sizeof(V) / sizeof(A)), sizeof(V));
        in_register(value);
        if (k < kTaps) first[m] += weights[k] * value;
        if (k >= kStep) second[m] += weights[k - kStep] * value;
      }
  }
};

// body.operator()<V, kCount>(row, i, sum) with the sums of every row, in blocks; two rows at a time where kStep tells how.
template <class A, int kTaps, int kStep, int kBytes, class Body>
GK_INLINE void each_sum(const A* from, Taps<A> taps, int64_t n, Repeat repeat, const Body& body) {
  int64_t row = 0;
  if constexpr (kStep > 0) {
    const Pair<A, kTaps, kStep> pair(from, taps);
    for (; row + 2 <= repeat.rows; row += 2)
      in_blocks<A, kBytes>(n, [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
        V first[kCount], second[kCount];
        pair.add_up(row * repeat.step + i, first, second);
        body(row, i, first);
        body(row + 1, i, second);
      });
  }
  const Known<A, kTaps> known{from, taps};
  for (; row < repeat.rows; ++row)
    in_blocks<A, kBytes>(n, [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
      V sum[kCount];
      known.add_up(row * repeat.step + i, sum);
      body(row, i, sum);
    });
}

template <class A, int kTaps, int kStep>
struct Plain {
  template <int kBytes>
  static GK_INLINE void run(const A* from, Taps<A> taps, int64_t n, A* __restrict out, Repeat repeat) {
    each_sum<A, kTaps, kStep, kBytes>(from, taps, n, repeat, [&]<class V, int kCount>(int64_t row, int64_t i, const V(&sum)[kCount])
                                      GK_INLINE_LAMBDA {
      for (int m = 0; m < kCount; ++m) store(out + row * repeat.out_step + i + m * int64_t(sizeof(V) / sizeof(A)), sum[m]);
    });
  }
};

// Memory is asked for early where an output row reads several rows at a time, which a processor's own prefetcher follows late.
// Two rows at a time take twice as much of it.
constexpr int64_t kAhead = 8192, kCacheLine = 64;

template <class A, int kTaps, int kStep>
struct Apart {
  template <int kBytes>
  static GK_INLINE void run(const A* from, Taps<A> taps, int64_t n, A* __restrict even, A* __restrict odd, Repeat repeat) {
    each_sum<A, kTaps, kStep, kBytes>(from, taps, n, repeat, [&]<class V, int kCount>(int64_t row, int64_t i, const V(&sum)[kCount])
                                      GK_INLINE_LAMBDA {
      const auto* ahead = reinterpret_cast<const char*>(from + row * repeat.step + i * repeat.fresh) + (kStep > 0 ? 2 : 1) * kAhead;
      for (int64_t b = 0; b < repeat.fresh * int64_t(kCount * sizeof(V)); b += kCacheLine) __builtin_prefetch(ahead + b, 0, 2);
      const int64_t at = row * repeat.out_step + i / 2;
      if (i % 2)
        store_apart(odd + at, even + at + 1, sum);
      else
        store_apart(even + at, odd + at, sum);
    });
  }
};

// Of few taps two rows share too little.
constexpr int kEnough = 6;
template <int kTaps, int kStep>
constexpr int step_of = kTaps < kEnough ? 0 : kStep;

template <class A, int kTaps>
using PlainRows = Plain<A, kTaps, 0>;
template <class A, int kTaps>
using PlainBy1 = Plain<A, kTaps, step_of<kTaps, 1>>;
template <class A, int kTaps>
using PlainBy2 = Plain<A, kTaps, step_of<kTaps, 2>>;
template <class A, int kTaps>
using ApartRows = Apart<A, kTaps, 0>;
template <class A, int kTaps>
using ApartBy2 = Apart<A, kTaps, step_of<kTaps, 2>>;

// Places one after the other, the first of `odd` kShift behind the first of `even`: what both read is loaded once.
template <class A, int kTaps, int kShift>
struct InTurn {
  template <int kBytes>
  static GK_INLINE void run(const A* from, Taps<A> even, Taps<A> odd, int64_t n, A* __restrict out, Repeat repeat) {
    A of_even[kTaps], of_odd[kTaps];
    for (int k = 0; k < kTaps; ++k) of_even[k] = even.weights[k], of_odd[k] = odd.weights[k];
    from += even.places[0];
    for (int64_t row = 0; row < repeat.rows; ++row, from += repeat.step, out += repeat.out_step)
      in_blocks<A, kBytes>(n, [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
        for (int m = 0; m < kCount; ++m, i += sizeof(V) / sizeof(A)) {
          V a{}, b{};
#pragma GCC unroll 16
          for (int k = 0; k < kTaps + kShift; ++k) {
            V value;
            std::memcpy(&value, from + i + k, sizeof(V));
            in_register(value);
            if (k < kTaps) a += of_even[k] * value;
            if (k >= kShift) b += of_odd[k - kShift] * value;
          }
          store_in_turn(out + 2 * i, a, b);
        }
      });
  }
};

template <class A, int kShift>
struct InTurn<A, kAny, kShift> {
  template <int kBytes>
  static GK_INLINE void run(const A* from, Taps<A> even_taps, Taps<A> odd_taps, int64_t n, A* __restrict out, Repeat repeat) {
    const Known<A, kAny> even{from, even_taps}, odd{from, odd_taps};
    for (int64_t at = 0, row = 0; row < repeat.rows; ++row, at += repeat.step, out += repeat.out_step)
      in_blocks<A, kBytes>(n, [&]<class V, int kCount>(int64_t i) GK_INLINE_LAMBDA {
        V a[kCount], b[kCount];
        even.add_up(at + i, a);
        odd.add_up(at + i, b);
        constexpr int64_t two = 2 * sizeof(V) / sizeof(A);
        for (int m = 0; m < kCount; ++m) store_in_turn(out + 2 * i + m * two, a[m], b[m]);
      });
  }
};
template <class A, int kTaps>
using InTurnAbreast = InTurn<A, kTaps, 0>;
template <class A, int kTaps>
using InTurnBehind = InTurn<A, kTaps, 1>;

// The loop of a kind for a number of taps: one of its own for the usual ones, or that for any.
template <template <class, int> class Body, class A, class... Args>
auto loop_for(int64_t taps) {
  constexpr int64_t kMost = 12;
  static const auto loops = [] {
    std::array<void (*)(Args...), kMost + 1> loops;
    loops.fill(run_with_registers<Body<A, kAny>, Args...>());
    if constexpr (std::is_same_v<A, float>)
      [&]<int... kTaps>(std::integer_sequence<int, kTaps...>) {
        ((loops[kTaps] = run_with_registers<Body<A, kTaps>, Args...>()), ...);
      }(std::integer_sequence<int, 1, 2, 3, 4, 6, 8, 12>());
    return loops;
  }();
  return loops[taps <= kMost ? taps : kAny];
}

// What taps are apart, if it is the same for all, or 0.
template <class A>
int64_t spacing_of(Taps<A> taps) {
  const int64_t spacing = taps.count > 1 ? taps.places[1] - taps.places[0] : 0;
  for (int64_t k = 1; k < taps.count; ++k)
    if (taps.places[k] != taps.places[0] + k * spacing) return 0;
  return spacing;
}

// By how many taps a row begins behind the one before it, where they share enough, or 0.
template <class A>
int64_t taps_apart(Taps<A> taps, Repeat repeat) {
  const int64_t spacing = repeat.rows > 1 && taps.count >= kEnough ? spacing_of(taps) : 0;
  return spacing != 0 && repeat.step % spacing == 0 ? repeat.step / spacing : 0;
}

}  // namespace

template <class A>
void sum_plain(const A* from, Taps<A> taps, int64_t n, A* out, Repeat repeat) {
  const int64_t step = taps_apart(taps, repeat);
  const auto loop = step == 1   ? loop_for<PlainBy1, A, const A*, Taps<A>, int64_t, A*, Repeat>(taps.count)
                    : step == 2 ? loop_for<PlainBy2, A, const A*, Taps<A>, int64_t, A*, Repeat>(taps.count)
                                : loop_for<PlainRows, A, const A*, Taps<A>, int64_t, A*, Repeat>(taps.count);
  loop(from, taps, n, out, repeat);
}

template <class A>
void sum_apart(const A* from, Taps<A> taps, int64_t n, A* even, A* odd, Repeat repeat) {
  const auto loop = taps_apart(taps, repeat) == 2 ? loop_for<ApartBy2, A, const A*, Taps<A>, int64_t, A*, A*, Repeat>(taps.count)
                                                  : loop_for<ApartRows, A, const A*, Taps<A>, int64_t, A*, A*, Repeat>(taps.count);
  loop(from, taps, n, even, odd, repeat);
}

template <class A>
void sum_in_turn(const A* from, Taps<A> even, Taps<A> odd, int64_t n, A* out, Repeat repeat) {
  const bool neighbours = even.count == odd.count && spacing_of(even) == 1 && spacing_of(odd) == 1;
  const int64_t shift = neighbours ? odd.places[0] - even.places[0] : 0;
  const int64_t taps = neighbours && (shift == 0 || shift == 1) ? even.count : kAny;
  const auto loop = shift == 1 ? loop_for<InTurnBehind, A, const A*, Taps<A>, Taps<A>, int64_t, A*, Repeat>(taps)
                               : loop_for<InTurnAbreast, A, const A*, Taps<A>, Taps<A>, int64_t, A*, Repeat>(taps);
  loop(from, even, odd, n, out, repeat);
}

template void sum_plain(const float*, Taps<float>, int64_t, float*, Repeat);
template void sum_plain(const double*, Taps<double>, int64_t, double*, Repeat);
template void sum_apart(const float*, Taps<float>, int64_t, float*, float*, Repeat);
template void sum_apart(const double*, Taps<double>, int64_t, double*, double*, Repeat);
template void sum_in_turn(const float*, Taps<float>, Taps<float>, int64_t, float*, Repeat);
template void sum_in_turn(const double*, Taps<double>, Taps<double>, int64_t, double*, Repeat);

}  // namespace gankernels
