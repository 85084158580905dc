// o_ib = sum_j K_ijb with K_ijb = exp(-sum_c |m_ibc - m_jbc|), and its first and second derivative.
// Work goes by (b, tile of rows i): a lane has one row of the tile and meets every row j in turn, so that nothing is summed
// across lanes, and memory beyond the result is one matrix m_b per thread, never N x N.
#include <bit>
#include <cmath>

#include "../common.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kRows = 32;  // lanes of a tile: two AVX-512 registers of float

[[gnu::always_inline]] inline double exp_of_minus(double d) { return std::exp(-d); }

// To 2 ulp for 0 <= d <= kMost, by 2^n exp(r).
[[gnu::always_inline]] inline float exp_of_minus(float d) {
  constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it leaves no fraction
  const float n = (d * -1.44269504f + round) - round;
  const float r = (-d - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// exp(-kMost) is next to nothing, and still a normal number.
template <class A>
constexpr A kMost = sizeof(A) == 8 ? 708 : 87;

template <class A>
[[gnu::always_inline]] inline A sign(A x) {  // times a NaN it is NaN, also at 0
  return A((x > 0) - (x < 0));
}

// K of the tile's rows with one row j.
template <class A>
[[gnu::always_inline]] inline void affinities(const A* tile, const A* row, int64_t channels, A* __restrict k) {
  A d[kRows] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t l = 0; l < kRows; ++l) d[l] += std::abs(tile[c * kRows + l] - row[c]);
  for (int64_t l = 0; l < kRows; ++l) d[l] = d[l] > kMost<A> ? kMost<A> : d[l];  // a loop of its own, or GCC would branch
  for (int64_t l = 0; l < kRows; ++l) k[l] = exp_of_minus(d[l]);
}

// sums_i = sum_j K_ij, in runs so that a large batch loses no more digits than a small one.
template <class A>
GK_MULTIVERSION void forward_tile(const A* tile, const A* rows, int64_t samples, int64_t channels, A* __restrict sums) {
  for (int64_t l = 0; l < kRows; ++l) sums[l] = 0;
  for (int64_t begin = 0; begin < samples; begin += 64) {
    A run[kRows] = {};
    for (int64_t j = begin; j < std::min(samples, begin + 64); ++j) {
      A k[kRows];
      affinities(tile, rows + j * channels, channels, k);
      for (int64_t l = 0; l < kRows; ++l) run[l] += k[l];
    }
    for (int64_t l = 0; l < kRows; ++l) sums[l] += run[l];
  }
}

// out_ic = -sum_j (g_i + g_j) K_ij sign(m_ic - m_jc).
template <class A>
GK_MULTIVERSION void bwd_tile(const A* tile, const A* rows, const A* tile_grad, const A* grad, int64_t samples,
                              int64_t channels, A* __restrict out) {
  for (int64_t at = 0; at < channels * kRows; ++at) out[at] = 0;
  for (int64_t j = 0; j < samples; ++j) {
    const A* row = rows + j * channels;
    A w[kRows];
    affinities(tile, row, channels, w);
    for (int64_t l = 0; l < kRows; ++l) w[l] *= tile_grad[l] + grad[j];
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t l = 0; l < kRows; ++l) out[c * kRows + l] -= w[l] * sign(tile[c * kRows + l] - row[c]);
  }
}

// With S_ij = sum_c (v_ic - v_jc) sign(m_ic - m_jc):
// grad_out_i = -sum_j K_ij S_ij,  out_ic = sum_j (g_i + g_j) K_ij S_ij sign(m_ic - m_jc).
template <class A>
GK_MULTIVERSION void bwd_bwd_tile(const A* tile, const A* rows, const A* tile_v, const A* v, const A* tile_grad,
                                  const A* grad, int64_t samples, int64_t channels, A* __restrict grad_out,
                                  A* __restrict out) {
  for (int64_t l = 0; l < kRows; ++l) grad_out[l] = 0;
  for (int64_t at = 0; at < channels * kRows; ++at) out[at] = 0;
  for (int64_t j = 0; j < samples; ++j) {
    const A *row = rows + j * channels, *row_v = v + j * channels;
    A w[kRows], s[kRows] = {};
    affinities(tile, row, channels, w);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t l = 0; l < kRows; ++l)
        s[l] += (tile_v[c * kRows + l] - row_v[c]) * sign(tile[c * kRows + l] - row[c]);
    for (int64_t l = 0; l < kRows; ++l) {
      w[l] *= s[l];
      grad_out[l] -= w[l];
      w[l] *= tile_grad[l] + grad[j];
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t l = 0; l < kRows; ++l) out[c * kRows + l] += w[l] * sign(tile[c * kRows + l] - row[c]);
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
void take_tile(const A* rows, int64_t begin, int64_t samples, int64_t channels, A* tile) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t l = 0; l < kRows; ++l) tile[c * kRows + l] = begin + l < samples ? rows[(begin + l) * channels + c] : 0;
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
    for_each_tile(n, [&] {
      return [&, rows = std::vector<A>(n.samples * n.channels), tile = std::vector<A>(n.channels * kRows)](
                 int64_t b, int64_t begin, bool next) mutable {
        if (next) take_rows(data<T>(m), b, n, rows.data());
        take_tile(rows.data(), begin, n.samples, n.channels, tile.data());
        A sums[kRows];
        forward_tile(tile.data(), rows.data(), n.samples, n.channels, sums);
        put_tile(sums, b, begin, {n.samples, n.features, 1}, mutable_data<T>(out));
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
    for_each_tile(n, [&] {
      return [&, rows = std::vector<A>(n.samples * n.channels), grads = std::vector<A>(n.samples),
              tile = std::vector<A>(n.channels * kRows), result = std::vector<A>(n.channels * kRows)](
                 int64_t b, int64_t begin, bool next) mutable {
        if (next) take_rows(data<T>(m), b, n, rows.data());
        if (next) take_rows(data<T>(grad), b, {n.samples, n.features, 1}, grads.data());
        take_tile(rows.data(), begin, n.samples, n.channels, tile.data());
        A tile_grad[kRows];
        take_tile(grads.data(), begin, n.samples, 1, tile_grad);
        bwd_tile(tile.data(), rows.data(), tile_grad, grads.data(), n.samples, n.channels, result.data());
        put_tile(result.data(), b, begin, n, mutable_data<T>(out));
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
      return [&, rows = std::vector<A>(n.samples * n.channels), vs = std::vector<A>(n.samples * n.channels),
              grads = std::vector<A>(n.samples), tile = std::vector<A>(n.channels * kRows),
              tile_v = std::vector<A>(n.channels * kRows), result = std::vector<A>(n.channels * kRows)](
                 int64_t b, int64_t begin, bool next) mutable {
        if (next) take_rows(data<T>(m), b, n, rows.data());
        if (next) take_rows(data<T>(v), b, n, vs.data());
        if (next) take_rows(data<T>(grad), b, {n.samples, n.features, 1}, grads.data());
        take_tile(rows.data(), begin, n.samples, n.channels, tile.data());
        take_tile(vs.data(), begin, n.samples, n.channels, tile_v.data());
        A tile_grad[kRows], grad_result[kRows];
        take_tile(grads.data(), begin, n.samples, 1, tile_grad);
        bwd_bwd_tile(tile.data(), rows.data(), tile_v.data(), vs.data(), tile_grad, grads.data(), n.samples, n.channels,
                     grad_result, result.data());
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
