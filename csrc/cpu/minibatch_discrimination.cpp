// o_ib = sum_j K_ijb with K_ijb = exp(-sum_c |m_ibc - m_jbc|), and its first and second derivative.
// A lane has one row i of a tile and meets the rows j in turn. K is symmetric: but for the second derivative, a row j meets the tiles up
// to its own, and what it adds to their rows they add to it. Memory beyond the result is a few matrices like m_b per thread, never N x N.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "../common.h"
#include "lines.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kRows = 32;  // lanes of a tile
constexpr int kAtOnce = 4;       // rows j, for which the tile is loaded once

template <int kBytes, class A>
struct Lanes {
  using V = register_of<A, kBytes>;
  using Bits = register_of<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>, kBytes>;
  using Bit = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  static constexpr int kOne = kBytes / sizeof(A), kBoth = 2 * kOne;  // two registers at a time
  static constexpr Bit kSign = std::numeric_limits<Bit>::min(), kUnit = std::bit_cast<Bit>(A(1));

  V of[2];

  // register by register: as an array they would be in memory
  GK_INLINE void load(const A* from) {
    for (int m = 0; m < 2; ++m) std::memcpy(&of[m], from + m * kOne, kBytes);
  }
  GK_INLINE void store(A* to) const {
    for (int m = 0; m < 2; ++m) std::memcpy(to + m * kOne, &of[m], kBytes);
  }
};

// Where lane l of a feature's tiles begins; channels are kRows further. A line lies between tiles, since places in the first-level
// cache repeat every 4096 bytes.
template <class A>
GK_INLINE int64_t place_of(int64_t l, int64_t channels) {
  return l / kRows * (channels * kRows + Lines<A>::kLine) + l % kRows;
}

// exp(-kMost) is next to nothing, and still a normal number.
template <class A>
constexpr A kMost = sizeof(A) == 8 ? 708 : 87;

// d = exp(-d), in float to 2 ulp for 0 <= d <= kMost, by 2^n exp(r).
template <int kBytes, class A>
GK_INLINE void exp_of_minus(Lanes<kBytes, A>& d) {
  if constexpr (sizeof(A) == 8) {
    for (auto& v : d.of)
      for (int l = 0; l < d.kOne; ++l) v[l] = std::exp(-v[l]);
  } else {
    using V = typename Lanes<kBytes, A>::V;
    using Bits = typename Lanes<kBytes, A>::Bits;
    for (V& v : d.of) {
      constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it leaves no fraction, and n in the last bits
      const V rounded = v * -1.44269504f + round, n = rounded - round;
      const V r = (-v - n * 0.693359375f) + n * 2.12194440e-4f;
      V p = 1.9875691500e-4f * r + 1.3981999507e-3f;
      p = p * r + 8.3334519073e-3f;
      p = p * r + 4.1665795894e-2f;
      p = p * r + 1.6666665459e-1f;
      p = p * r + 5.0000001201e-1f;
      p = p * r * r + r + 1.f;
      v = p * (V)(((Bits)rounded + 127) << 23);
    }
  }
}

// k[j] = K of a tile's lanes with the j-th of several rows.
template <int kBytes, int kCount, class A>
GK_INLINE void affinities(const A* tile, const A* rows, int64_t channels, Lanes<kBytes, A> (&k)[kCount]) {
  using L = Lanes<kBytes, A>;
  using V = typename L::V;
  for (auto& d : k) d = {};
  for (int64_t c = 0; c < channels; ++c) {
    L t;
    t.load(tile + c * kRows);
    for (int j = 0; j < kCount; ++j) {
      const A x = rows[j * channels + c];
      for (int m = 0; m < 2; ++m) k[j].of[m] += (V)((typename L::Bits)(t.of[m] - x) & ~L::kSign);
    }
  }
  for (auto& d : k) {
    for (V& v : d.of) v = v > kMost<A> ? V{} + kMost<A> : v;
    exp_of_minus(d);
  }
}

// w sign(d); times a NaN it is NaN, also at 0.
template <int kBytes, class A, class V>
GK_INLINE V with_sign_of(const V& d, const V& w) {
  using L = Lanes<kBytes, A>;
  return w * (V)((((typename L::Bits)d & L::kSign) | L::kUnit) & (typename L::Bits)(d != 0));
}

// out_c += sum_i w_i sign(m_c - rows_ic), a tile's lanes against several rows.
template <int kBytes, int kCount, class A>
GK_INLINE void add_rows(const A* tile, const A* rows, const Lanes<kBytes, A> (&w)[kCount], int64_t channels, A* __restrict out) {
  for (int64_t c = 0; c < channels; ++c) {
    Lanes<kBytes, A> t, sum;
    t.load(tile + c * kRows);
    sum.load(out + c * kRows);
    for (int i = 0; i < kCount; ++i)
      for (int m = 0; m < 2; ++m) sum.of[m] += with_sign_of<kBytes, A>(t.of[m] - rows[i * channels + c], w[i].of[m]);
    sum.store(out + c * kRows);
  }
}

// body.operator()<kCount>(j) for kCount rows from j on.
template <class Body>
GK_INLINE void for_rows(int64_t begin, int64_t end, const Body& body) {
  int64_t j = begin;
  for (; j + kAtOnce <= end; j += kAtOnce) body.template operator()<kAtOnce>(j);
  for (; j < end; ++j) body.template operator()<1>(j);
}

// to[i] += the sum of v[i]
template <int kBytes, int kCount, class A, class V>
GK_INLINE void add_sums_of(const V (&v)[kCount], A* to) {
  if constexpr (kBytes == sizeof(A)) {
    for (int i = 0; i < kCount; ++i) to[i] += v[i][0];
  } else if constexpr (kCount == 4 && kBytes == 4 * sizeof(A)) {
    const V ab = __builtin_shufflevector(v[0], v[1], 0, 4, 2, 6) + __builtin_shufflevector(v[0], v[1], 1, 5, 3, 7);
    const V cd = __builtin_shufflevector(v[2], v[3], 0, 4, 2, 6) + __builtin_shufflevector(v[2], v[3], 1, 5, 3, 7);
    V sums;
    std::memcpy(&sums, to, kBytes);
    sums += __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    std::memcpy(to, &sums, kBytes);
  } else {
    register_of<A, kBytes / 2> halves[kCount];
    for (int i = 0; i < kCount; ++i) {
      register_of<A, kBytes / 2> low, high;
      std::memcpy(&low, &v[i], kBytes / 2);
      std::memcpy(&high, reinterpret_cast<const char*>(&v[i]) + kBytes / 2, kBytes / 2);
      halves[i] = low + high;
    }
    add_sums_of<kBytes / 2>(halves, to);
  }
}

// sums_i = sum_j K_ij. `run` holds what a tile of rows j adds, so that a large batch loses no more digits than a small one.
template <int kBytes, class A>
GK_INLINE void forward_feature(const A* tiles, const A* rows, int64_t samples, int64_t channels, A* __restrict run,
                               A* __restrict sums) {
  using L = Lanes<kBytes, A>;
  for (int64_t begin = 0; begin < samples; begin += kRows) {
    std::fill_n(run, begin + kRows, A(0));
    for_rows(begin, std::min(samples, begin + kRows), [&]<int kCount>(int64_t j) GK_INLINE_LAMBDA {
      typename L::V of_rows[kCount] = {};
      for (int64_t tile = 0; tile <= begin; tile += kRows)
        for (int64_t at = 0; at < kRows; at += L::kBoth) {
          L k[kCount], sum;
          affinities(tiles + place_of<A>(tile + at, channels), rows + j * channels, channels, k);
          sum.load(run + tile + at);
          for (int i = 0; i < kCount; ++i) {
            if (tile < begin) of_rows[i] += k[i].of[0] + k[i].of[1];
            for (int m = 0; m < 2; ++m) sum.of[m] += k[i].of[m];
          }
          sum.store(run + tile + at);
        }
      add_sums_of<kBytes>(of_rows, run + j);
    });
    for (int64_t i = 0; i < begin; ++i) sums[i] += run[i];
    std::copy_n(run + begin, kRows, sums + begin);
  }
}

// out_ic = -sum_j (g_i + g_j) K_ij sign(m_ic - m_jc), tile by tile as `tiles` is; weights: room for kAtOnce numbers per lane.
template <int kBytes, class A>
GK_INLINE void bwd_feature(const A* tiles, const A* rows, const A* grad, int64_t samples, int64_t channels, A* __restrict weights,
                           A* __restrict out) {
  using L = Lanes<kBytes, A>;
  using V = typename L::V;
  for_rows(0, samples, [&]<int kCount>(int64_t j) GK_INLINE_LAMBDA {
    const int64_t own = j / kRows * kRows;
    for (int64_t at = 0; at < own + kRows; at += L::kBoth) {
      L w[kCount], g;
      affinities(tiles + place_of<A>(at, channels), rows + j * channels, channels, w);
      g.load(grad + at);
      for (int i = 0; i < kCount; ++i) {
        for (int m = 0; m < 2; ++m) w[i].of[m] *= -(g.of[m] + grad[j + i]);
        w[i].store(weights + at * kCount + i * L::kBoth);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      A row[kCount];
      for (int i = 0; i < kCount; ++i) row[i] = rows[(j + i) * channels + c];
      V others[kCount] = {};
      const auto add = [&]<bool kOthers>(int64_t begin, int64_t end) GK_INLINE_LAMBDA {
        for (int64_t at = begin; at < end; at += L::kBoth) {
          L t, sum, w;
          const int64_t place = place_of<A>(at, channels) + c * kRows;
          t.load(tiles + place);
          sum.load(out + place);
          for (int i = 0; i < kCount; ++i) {
            w.load(weights + at * kCount + i * L::kBoth);
            for (int m = 0; m < 2; ++m) {
              const V pulled = with_sign_of<kBytes, A>(t.of[m] - row[i], w.of[m]);
              sum.of[m] += pulled;
              if (kOthers) others[i] -= pulled;
            }
          }
          sum.store(out + place);
        }
      };
      add.template operator()<true>(0, own);
      add.template operator()<false>(own, own + kRows);
      add_sums_of<kBytes>(others, out + place_of<A>(j, channels) + c * kRows);
    }
  });
}

// With S_ij = sum_c (v_ic - v_jc) sign(m_ic - m_jc):
// grad_out_i = -sum_j K_ij S_ij,  out_ic = sum_j (g_i + g_j) K_ij S_ij sign(m_ic - m_jc).
template <int kBytes, class A>
GK_INLINE void bwd_bwd_tile(const A* tile, const A* rows, const A* tile_v, const A* v, const A* tile_grad, const A* grad,
                            int64_t samples, int64_t channels, A* __restrict grad_out, A* __restrict out) {
  using L = Lanes<kBytes, A>;
  for (int64_t c = 0; c < channels * kRows; ++c) out[c] = 0;
  for (int64_t at = 0; at < kRows; at += L::kBoth) {
    L grad_sum = {};
    for_rows(0, samples, [&]<int kCount>(int64_t j) GK_INLINE_LAMBDA {
      const A *row = rows + j * channels, *row_v = v + j * channels;
      L w[kCount], s[kCount] = {}, g;
      affinities(tile + at, row, channels, w);
      for (int64_t c = 0; c < channels; ++c) {
        L t, u;
        t.load(tile + c * kRows + at);
        u.load(tile_v + c * kRows + at);
        for (int i = 0; i < kCount; ++i)
          for (int m = 0; m < 2; ++m)
            s[i].of[m] += with_sign_of<kBytes, A>(t.of[m] - row[i * channels + c], u.of[m] - row_v[i * channels + c]);
      }
      g.load(tile_grad + at);
      for (int i = 0; i < kCount; ++i)
        for (int m = 0; m < 2; ++m) {
          w[i].of[m] *= s[i].of[m];
          grad_sum.of[m] -= w[i].of[m];
          w[i].of[m] *= g.of[m] + grad[j + i];
        }
      add_rows(tile + at, row, w, channels, out + at);
    });
    grad_sum.store(grad_out + at);
  }
}

struct Sizes {
  int64_t samples, features, channels;
};

// One feature's N x C matrix of (N, B, C), in the dtype of the sums: all its rows, or those of a tile with a row per lane
// (rows that do not exist are 0).
template <class T, class A>
void take_rows(const T* m, int64_t b, Sizes n, A* rows) {
  for (int64_t j = 0; j < n.samples; ++j)
    for (int64_t c = 0; c < n.channels; ++c) rows[j * n.channels + c] = A(m[(j * n.features + b) * n.channels + c]);
}
template <class A>
void take_tile(const A* rows, int64_t begin, Sizes n, A* tile) {
  for (int64_t c = 0; c < n.channels; ++c)
    for (int64_t l = 0; l < kRows; ++l) tile[c * kRows + l] = begin + l < n.samples ? rows[(begin + l) * n.channels + c] : 0;
}
template <class T, class A>
void put_tile(const A* tile, int64_t b, int64_t begin, Sizes n, T* out) {
  for (int64_t l = 0; l < std::min(kRows, n.samples - begin); ++l)
    for (int64_t c = 0; c < n.channels; ++c)
      out[((begin + l) * n.features + b) * n.channels + c] = T(tile[c * kRows + l]);
}

// body(b, begin, next) for every tile of rows from `begin` on, one b after the other within a thread; next: b is not that of the
// thread's last call. `make` makes a thread's body, with the memory it works in.
template <class Make>
void for_each_tile(Sizes n, const Make& make) {
  const int64_t tiles = (n.samples + kRows - 1) / kRows;
  const int64_t work = n.samples * std::max<int64_t>(1, n.channels) * kRows;
  if (tiles * n.features == 0) return;
  torch::stable::parallel_for(0, n.features * tiles, std::max<int64_t>(1, 4 * kChunk / work), [&](int64_t first, int64_t last) {
    auto body = make();
    for (int64_t item = first; item < last; ++item)
      body(item / tiles, item % tiles * kRows, item == first || item % tiles == 0);
  });
}

constexpr int64_t whole_tiles(int64_t samples) { return (samples + kRows - 1) / kRows * kRows; }

// body(b) for every feature; `make` makes a thread's body, with the memory it works in.
template <class Make>
void for_each_feature(Sizes n, const Make& make) {
  const int64_t work = n.samples * n.samples * std::max<int64_t>(1, n.channels);
  if (n.samples == 0) return;
  torch::stable::parallel_for(0, n.features, std::max<int64_t>(1, 4 * kChunk / work), [&](int64_t first, int64_t last) {
    auto body = make();
    for (int64_t b = first; b < last; ++b) body(b);
  });
}

Sizes check(const char* op, const Tensor& m) {
  GK_CHECK(m.dim() == 3, op, ": m must have shape (N, B, C), got ", shape_text(m.sizes()));
  return {m.size(0), m.size(1), m.size(2)};
}

void check_grad(const char* op, const Tensor& grad, const Tensor& m) {
  check_cpu(op, "grad", grad);
  GK_CHECK(grad.dim() == 2 && grad.size(0) == m.size(0) && grad.size(1) == m.size(1), op,
           ": grad must have shape (N, B) = (", m.size(0), ", ", m.size(1), "), got ", shape_text(grad.sizes()));
  GK_CHECK(grad.scalar_type() == m.scalar_type(), op, ": grad must have the dtype of m, ",
           torch::headeronly::toString(m.scalar_type()), ", got ", torch::headeronly::toString(grad.scalar_type()));
}

Tensor minibatch_discrimination(const Tensor& m_) {
  const char* op = "minibatch_discrimination";
  const Sizes n = check(op, m_);
  const Tensor m = as_contiguous(m_);
  Tensor out = torch::stable::new_empty(m, std::vector<int64_t>{n.samples, n.features});
  dispatch_floating(op, m.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const int64_t padded = whole_tiles(n.samples), size = place_of<A>(padded, n.channels);
    for_each_feature(n, [&] {
      return [&, rows = Lines<A>(n.samples * n.channels), tiles = Lines<A>(size), run = Lines<A>(padded),
              sums = Lines<A>(padded)](int64_t b) mutable {
        take_rows(data<T>(m), b, n, rows.data());
        for (int64_t l = 0; l < padded; l += kRows) take_tile(rows.data(), l, n, tiles.data() + place_of<A>(l, n.channels));
        with_registers([&]<int kBytes>() GK_INLINE_LAMBDA {
          forward_feature<kBytes>(tiles.data(), rows.data(), n.samples, n.channels, run.data(), sums.data());
        });
        for (int64_t i = 0; i < n.samples; ++i) mutable_data<T>(out)[i * n.features + b] = T(sums.data()[i]);
      };
    });
  });
  return out;
}

Tensor minibatch_discrimination_bwd(const Tensor& grad_, const Tensor& m_) {
  const char* op = "minibatch_discrimination_bwd";
  const Sizes n = check(op, m_);
  check_grad(op, grad_, m_);
  const Tensor m = as_contiguous(m_), grad = as_contiguous(grad_);
  Tensor out = torch::stable::new_empty(m, m.sizes());
  dispatch_floating(op, m.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    const int64_t padded = whole_tiles(n.samples), size = place_of<A>(padded, n.channels);
    for_each_feature(n, [&] {
      return [&, rows = Lines<A>(n.samples * n.channels), grads = Lines<A>(padded), tiles = Lines<A>(size), result = Lines<A>(size),
              weights = Lines<A>(kAtOnce * padded)](int64_t b) mutable {
        take_rows(data<T>(m), b, n, rows.data());
        take_rows(data<T>(grad), b, {n.samples, n.features, 1}, grads.data());
        for (int64_t l = 0; l < padded; l += kRows) take_tile(rows.data(), l, n, tiles.data() + place_of<A>(l, n.channels));
        std::fill_n(result.data(), size, A(0));
        with_registers([&]<int kBytes>() GK_INLINE_LAMBDA {
          bwd_feature<kBytes>(tiles.data(), rows.data(), grads.data(), n.samples, n.channels, weights.data(), result.data());
        });
        for (int64_t l = 0; l < padded; l += kRows)
          put_tile(result.data() + place_of<A>(l, n.channels), b, l, n, mutable_data<T>(out));
      };
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> minibatch_discrimination_bwd_bwd(const Tensor& grad_grad_, const Tensor& grad_, const Tensor& m_) {
  const char* op = "minibatch_discrimination_bwd_bwd";
  const Sizes n = check(op, m_);
  check_grad(op, grad_, m_);
  check_cpu(op, "grad_grad", grad_grad_);
  check_same_shape(op, "grad_grad", grad_grad_, "m", m_);
  const Tensor m = as_contiguous(m_), grad = as_contiguous(grad_), v = as_contiguous(grad_grad_);
  Tensor grad_out = torch::stable::new_empty(grad, grad.sizes()), m_out = torch::stable::new_empty(m, m.sizes());
  dispatch_floating(op, m.scalar_type(), [&]<class T>() {
    using A = accumulate_t<T>;
    for_each_tile(n, [&] {
      return [&, rows = Lines<A>(n.samples * n.channels), vs = Lines<A>(n.samples * n.channels),
              grads = Lines<A>(n.samples), tile = Lines<A>(n.channels * kRows),
              tile_v = Lines<A>(n.channels * kRows), result = Lines<A>(n.channels * kRows)](
                 int64_t b, int64_t begin, bool next) mutable {
        if (next) take_rows(data<T>(m), b, n, rows.data());
        if (next) take_rows(data<T>(v), b, n, vs.data());
        if (next) take_rows(data<T>(grad), b, {n.samples, n.features, 1}, grads.data());
        take_tile(rows.data(), begin, n, tile.data());
        take_tile(vs.data(), begin, n, tile_v.data());
        A tile_grad[kRows], grad_result[kRows];
        take_tile(grads.data(), begin, {n.samples, n.features, 1}, tile_grad);
        with_registers([&]<int kBytes>() GK_INLINE_LAMBDA {
          bwd_bwd_tile<kBytes>(tile.data(), rows.data(), tile_v.data(), vs.data(), tile_grad, grads.data(), n.samples, n.channels,
                               grad_result, result.data());
        });
        put_tile(grad_result, b, begin, {n.samples, n.features, 1}, mutable_data<T>(grad_out));
        put_tile(result.data(), b, begin, n, mutable_data<T>(m_out));
      };
    });
  });
  return {grad_out, m_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("minibatch_discrimination", TORCH_BOX(&minibatch_discrimination));
  m.impl("minibatch_discrimination_bwd", TORCH_BOX(&minibatch_discrimination_bwd));
  m.impl("minibatch_discrimination_bwd_bwd", TORCH_BOX(&minibatch_discrimination_bwd_bwd));
}

}  // namespace gankernels
