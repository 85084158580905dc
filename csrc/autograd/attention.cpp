// softmax(scale q kᵀ) v and its first and second derivative, block of queries by block: the N×N matrix never exists, its
// blocks are recomputed, and memory stays linear in the number of tokens. Stock kernels do the arithmetic (products of matrices
// outweigh the rest); blocks are float32 or float64. The CPU's: a GPU has the kernels of gankernels/ops/attention.py.
#include <ATen/ATen.h>
#include <ATen/ThreadLocalState.h>
#include <torch/csrc/stable/ops.h>
#include <torch/library.h>

#include <algorithm>

#include "../cpu/exponentials.h"

namespace {

using at::Tensor;

// Elements of a block: few enough for the cache.
constexpr int64_t kBlock = 1 << 18;

void check(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && q.size(0) == k.size(0) && q.size(0) == v.size(0) &&
                  q.size(2) == k.size(2) && k.size(1) == v.size(1),
              "gankernels.", op, ": q, k, v must have shapes (B, L, E), (B, S, E), (B, S, F), got ", q.sizes(), ", ", k.sizes(),
              ", ", v.sizes());
  TORCH_CHECK(q.is_floating_point() && q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(), "gankernels.",
              op, ": q, k, v must have the same floating dtype, got ", q.scalar_type(), ", ", k.scalar_type(), ", ",
              v.scalar_type());
}

void check_like(const char* op, const char* name, const Tensor& t, at::IntArrayRef sizes) {
  TORCH_CHECK(t.sizes() == sizes, "gankernels.", op, ": ", name, " must have shape ", sizes, ", got ", t.sizes());
}

Tensor wide(const Tensor& t) {
  return (at::isReducedFloatingType(t.scalar_type()) ? t.to(at::kFloat) : t).contiguous();
}

Tensor zeros(const Tensor& like) { return at::zeros(like.sizes(), like.options()); }

// A block: some heads, some of their queries, and the keys these see.
struct Block {
  int64_t head, heads, query, queries, keys;
  bool causal;

  Tensor of_queries(const Tensor& t) const { return t.narrow(0, head, heads).narrow(1, query, queries); }
  Tensor of_keys(const Tensor& t) const { return t.narrow(0, head, heads).narrow(1, 0, keys); }
  // P = softmax(q kᵀ), q scaled already
  Tensor probabilities(const Tensor& q, const Tensor& k) const {
    Tensor scores = at::bmm(of_queries(q), of_keys(k).mT());
    if (causal)
      scores.masked_fill_(at::ones({queries, keys}, scores.options().dtype(at::kBool)).triu_(query + 1), -INFINITY);
    return at::_softmax(scores, -1, false);
  }
};

// The blocks of the heads from first to last, of at most `size` elements where a query's keys are not more.
template <class Body>
void for_each_block(int64_t first, int64_t last, const Tensor& q, const Tensor& k, bool causal, int64_t size, const Body& body) {
  const int64_t length = q.size(1), keys = k.size(1);
  if (length * keys == 0) return;
  const int64_t queries = std::clamp<int64_t>(size / keys, 1, length);
  const int64_t heads = std::max<int64_t>(size / (keys * queries), 1);
  for (int64_t h = first; h < last; h += heads)
    for (int64_t i = 0; i < length; i += queries) {
      const int64_t end = std::min(length, i + queries);
      body(Block{h, std::min(heads, last - h), i, end - i, causal ? std::min(keys, end) : keys, causal});
    }
}

template <class Body>
void for_each_block(const Tensor& q, const Tensor& k, bool causal, const Body& body) {
  for_each_block(0, q.size(0), q, k, causal, kBlock, body);
}

// A batch of one head each: then every result of stock's is contiguous. Its kernels take a token's features to be dense.
Tensor one_head(const Tensor& t) { return (t.stride(2) == 1 ? t : t.contiguous()).unsqueeze(1); }

// Stock's fused kernel for the CPU is faster than blocks, but where the keys are not whole vectors it loses a NaN in q or k and gives
// numbers: what has a sum that is not finite goes block by block.
bool goes_to_stock(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto sum = [](const Tensor& t) { return t.sum(t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat); };
  return q.size(2) == v.size(2) && q.numel() > 0 && k.numel() > 0 && at::isfinite(sum(q) + sum(k)).item<bool>();
}

// Also the logarithm of each query's sum of exponentials where stock's kernel gave it, else infinity.
std::tuple<Tensor, Tensor> attention(const Tensor& q_, const Tensor& k_, const Tensor& v_, bool causal, double scale) {
  check("attention", q_, k_, v_);
  if (goes_to_stock(q_, k_, v_)) {
    const auto [out, logs] = at::_scaled_dot_product_flash_attention_for_cpu(one_head(q_), one_head(k_), one_head(v_), 0., causal,
                                                                             std::nullopt, scale);
    return {out.squeeze(1).contiguous(), logs.squeeze(1).contiguous()};
  }
  const Tensor q = wide(q_).mul(scale), k = wide(k_), v = wide(v_);
  Tensor out = at::zeros({q.size(0), q.size(1), v.size(2)}, q.options());
  for_each_block(q, k, causal, [&](const Block& b) {
    Tensor block = b.of_queries(out);
    at::bmm_out(block, b.probabilities(q, k), b.of_keys(v));
  });
  return {out.to(q_.scalar_type()), at::full({q.size(0), q.size(1)}, INFINITY, out.options())};
}

std::tuple<Tensor, Tensor, Tensor> attention_bwd(const Tensor& grad_, const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                                 const Tensor& out, const Tensor& logs, bool causal, double scale) {
  check("attention_bwd", q_, k_, v_);
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"grad", grad_}, {"out", out}})
    check_like("attention_bwd", name, t, {q_.size(0), q_.size(1), v_.size(2)});
  check_like("attention_bwd", "logs", logs, {q_.size(0), q_.size(1)});
  const bool by_stock = q_.size(2) == v_.size(2) && logs.numel() > 0 && at::isfinite(logs.sum()).item<bool>();
  if (by_stock) {
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        one_head(grad_), one_head(q_), one_head(k_), one_head(v_), one_head(out), logs.contiguous().unsqueeze(1), 0., causal, std::nullopt, scale);
    return {dq.squeeze(1).contiguous(), dk.squeeze(1).contiguous(), dv.squeeze(1).contiguous()};
  }
  const Tensor g = wide(grad_), q = wide(q_).mul(scale), k = wide(k_), v = wide(v_);
  Tensor dq = zeros(q), dk = zeros(k), dv = zeros(v);
  for_each_block(q, k, causal, [&](const Block& b) {
    const Tensor p = b.probabilities(q, k), block_g = b.of_queries(g);
    b.of_keys(dv).baddbmm_(p.mT(), block_g);
    const Tensor dp = at::bmm(block_g, b.of_keys(v).mT());
    const Tensor ds = at::_softmax_backward_data(dp, p, -1, p.scalar_type());
    Tensor block_dq = b.of_queries(dq);
    at::bmm_out(block_dq, ds, b.of_keys(k));
    b.of_keys(dk).baddbmm_(ds.mT(), b.of_queries(q));
  });
  const auto dtype = q_.scalar_type();
  return {dq.mul_(scale).to(dtype), dk.to(dtype), dv.to(dtype)};
}

// What the second derivative makes of a row of s = q kᵀ, a = g vᵀ, t = (vq kᵀ + q vkᵀ) and u = g vvᵀ, of which the query sees `seen` keys
// of `keys`: P, P(A - Ā), P(T - T̄) and dS, in their places. A line has room for whole lanes.
template <class T>
GK_MULTIVERSION void differentiate_row(T* s, T* a, T* t, T* u, int64_t seen, int64_t keys) {
  constexpr int lanes = 32;
  const int64_t whole = (seen + lanes - 1) / lanes * lanes;
  for (int64_t i = seen; i < whole; ++i) {
    s[i] = -INFINITY;
    a[i] = t[i] = u[i] = 0;
  }
  T largest[lanes], sum[lanes] = {}, sum_a[lanes] = {}, sum_t[lanes] = {}, sum_d[lanes] = {};
  for (int l = 0; l < lanes; ++l) largest[l] = -INFINITY;
  for (int64_t i = 0; i < whole; i += lanes)
    for (int l = 0; l < lanes; ++l) largest[l] = s[i + l] > largest[l] ? s[i + l] : largest[l];
  T top = largest[0];
  for (int l = 1; l < lanes; ++l) top = largest[l] > top ? largest[l] : top;
  for (int64_t i = 0; i < whole; i += lanes)
    for (int l = 0; l < lanes; ++l) {
      const T e = gankernels::fast_exp(s[i + l] - top);
      s[i + l] = e;
      sum[l] += e;
      sum_a[l] += e * a[i + l];
      sum_t[l] += e * t[i + l];
    }
  T total = 0, mean_a = 0, mean_t = 0, mean_d = 0;
  for (int l = 0; l < lanes; ++l) {
    total += sum[l];
    mean_a += sum_a[l];
    mean_t += sum_t[l];
  }
  const T scale = 1 / total;
  mean_a *= scale;
  mean_t *= scale;
  for (int64_t i = 0; i < whole; i += lanes)
    for (int l = 0; l < lanes; ++l) {
      const T p = s[i + l] * scale, of_a = a[i + l] - mean_a, of_t = t[i + l] - mean_t, d = u[i + l] + of_a * of_t;
      s[i + l] = p;
      a[i + l] = p * of_a;
      t[i + l] = p * of_t;
      u[i + l] = d;
      sum_d[l] += p * d;
    }
  for (int l = 0; l < lanes; ++l) mean_d += sum_d[l];
  for (int64_t i = 0; i < whole; ++i) u[i] = s[i] * (u[i] - mean_d);
  for (T* row : {s, a, t, u}) std::fill(row + seen, row + std::max(seen, keys), T(0));
}

// The same of a block, in one pass: to read it again and again would take as long as its products.
void differentiate_rows(const Block& b, Tensor& s, Tensor& a, Tensor& t, Tensor& u) {
  AT_DISPATCH_FLOATING_TYPES(s.scalar_type(), "attention_bwd_bwd", [&] {
    scalar_t *const of_s = s.mutable_data_ptr<scalar_t>(), *const of_a = a.mutable_data_ptr<scalar_t>(),
             *const of_t = t.mutable_data_ptr<scalar_t>(), *const of_u = u.mutable_data_ptr<scalar_t>();
    const int64_t line = s.stride(1);
    torch::stable::parallel_for(0, b.heads * b.queries, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t seen = b.causal ? std::min(b.keys, b.query + i % b.queries + 1) : b.keys;
        differentiate_row(of_s + i * line, of_a + i * line, of_t + i * line, of_u + i * line, seen, b.keys);
      }
    });
  });
}

// vq, vk and vv arrive at the gradients in q, k and v; returns the gradients in grad, q, k and v. With S the scores, P the
// probabilities, A = g vᵀ, T = scale (vq kᵀ + q vkᵀ) and the bars means under P, row by row:
//   dg = P(T - T̄) v + P vv,   dv = (P(T - T̄))ᵀ g,   dS = softmax' of (T - T̄)(A - Ā) + g vvᵀ,
// and P(A - Ā), the gradient at S in the first derivative, is the one at T. Threads take heads of their own where there are enough
// of them.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_bwd_bwd(const Tensor& vq_, const Tensor& vk_, const Tensor& vv_,
                                                             const Tensor& grad_, const Tensor& q_, const Tensor& k_,
                                                             const Tensor& v_, bool causal, double scale) {
  const char* op = "attention_bwd_bwd";
  check(op, q_, k_, v_);
  check_like(op, "grad", grad_, {q_.size(0), q_.size(1), v_.size(2)});
  check_like(op, "grad_grad_q", vq_, q_.sizes());
  check_like(op, "grad_grad_k", vk_, k_.sizes());
  check_like(op, "grad_grad_v", vv_, v_.sizes());
  const Tensor g = wide(grad_), q = wide(q_).mul(scale), k = wide(k_), v = wide(v_);
  const Tensor vq = wide(vq_).mul(scale), vk = wide(vk_), vv = wide(vv_);
  // scale vq and q side by side, as factors of T; likewise k and vk
  const Tensor vq_q = at::cat({vq, q}, 2), k_vk = at::cat({k, vk}, 2);
  Tensor dg = zeros(g), dq = zeros(q), dk = zeros(k), dv = zeros(v);

  const int64_t batch = q.size(0), keys = k.size(1), threads = torch::stable::get_num_threads();
  const int64_t parts = batch >= threads ? threads : 1;
  const int64_t size = kBlock / 2 * threads / parts;
  // allocated here, since threads would not keep their pages; lines of whole lanes, for differentiate_row
  const int64_t line = (keys + 31) / 32 * 32, most = std::max<int64_t>(size / std::max<int64_t>(keys, 1), 1);
  const int64_t rows = std::min(most, (batch + parts - 1) / parts * q.size(1));
  const Tensor memory = at::empty({parts, 4, rows, line}, q.options());
  const auto differentiate = [&](const Tensor& scratch, const Block& b) {
    const auto product = [&](int64_t i, const Tensor& x, const Tensor& y) {
      Tensor block = scratch[i].narrow(0, 0, b.heads * b.queries).view({b.heads, b.queries, line}).narrow(2, 0, b.keys);
      at::bmm_out(block, x, y.mT());
      return block;
    };
    const Tensor block_g = b.of_queries(g);
    Tensor p = product(0, b.of_queries(q), b.of_keys(k)), at_t = product(1, block_g, b.of_keys(v));
    Tensor at_a = product(2, b.of_queries(vq_q), b.of_keys(k_vk)), ds = product(3, block_g, b.of_keys(vv));
    differentiate_rows(b, p, at_t, at_a, ds);
    Tensor block_dg = b.of_queries(dg), block_dq = b.of_queries(dq);
    at::bmm_out(block_dg, at_a, b.of_keys(v));
    block_dg.baddbmm_(p, b.of_keys(vv));
    b.of_keys(dv).baddbmm_(at_a.mT(), block_g);
    at::bmm_out(block_dq, ds, b.of_keys(k));
    block_dq.baddbmm_(at_t, b.of_keys(vk));
    b.of_keys(dk).baddbmm_(ds.mT(), b.of_queries(q)).baddbmm_(at_t.mT(), b.of_queries(vq));
  };
  const at::ThreadLocalState caller;
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const at::ThreadLocalStateGuard as_caller(caller);
    for (int64_t part = begin; part < end; ++part)
      for_each_block(batch * part / parts, batch * (part + 1) / parts, q, k, causal, size,
                     [&](const Block& b) { differentiate(memory[part], b); });
  });
  const auto dtype = q_.scalar_type();
  return {dg.to(dtype), dq.mul_(scale).to(dtype), dk.to(dtype), dv.to(dtype)};
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("attention", attention);
  m.impl("attention_bwd", attention_bwd);
  m.impl("attention_bwd_bwd", attention_bwd_bwd);
}
