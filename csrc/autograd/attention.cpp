// softmax(scale q kᵀ) v and its first and second derivative, block of queries by block: the N×N matrix never exists, its
// blocks are recomputed, and memory stays linear in the number of tokens. Stock kernels do the arithmetic (products of matrices
// outweigh the rest); blocks are float32 or float64. The CPU's: a GPU has the kernels of gankernels/ops/attention.py.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

namespace {

using at::Tensor;

// Elements of a block: the few that a derivative holds at once stay in the second-level cache; on a GPU so many that launches, a
// handful for each block, do not outweigh them.
int64_t block_size(const Tensor& t) { return t.is_cpu() ? 1 << 18 : 1 << 24; }

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

template <class Body>
void for_each_block(const Tensor& q, const Tensor& k, bool causal, const Body& body) {
  const int64_t batch = q.size(0), length = q.size(1), keys = k.size(1);
  if (batch * length * keys == 0) return;
  const int64_t size = block_size(q);
  const int64_t queries = std::clamp<int64_t>(size / keys, 1, length);
  const int64_t heads = std::clamp<int64_t>(size / (keys * queries), 1, batch);
  for (int64_t h = 0; h < batch; h += heads)
    for (int64_t i = 0; i < length; i += queries) {
      const int64_t end = std::min(length, i + queries);
      body(Block{h, std::min(heads, batch - h), i, end - i, causal ? std::min(keys, end) : keys, causal});
    }
}

// A batch of one head each: then every result of stock's is contiguous. Its kernels take a token's features to be dense.
Tensor one_head(const Tensor& t) { return (t.stride(2) == 1 ? t : t.contiguous()).unsqueeze(1); }

// Stock's fused kernel for the CPU is faster than blocks, but where the keys are not whole vectors it loses a NaN in q or k and gives
// numbers: what has a sum that is not finite goes block by block.
bool goes_to_stock(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto sum = [](const Tensor& t) { return t.sum(t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat); };
  return q.is_cpu() && q.size(2) == v.size(2) && q.numel() > 0 && k.numel() > 0 && at::isfinite(sum(q) + sum(k)).item<bool>();
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
  const bool by_stock =
      q_.is_cpu() && q_.size(2) == v_.size(2) && logs.numel() > 0 && at::isfinite(logs.sum()).item<bool>();
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

// vq, vk and vv arrive at the gradients in q, k and v; returns the gradients in grad, q, k and v. With S the scores, P the
// probabilities, A = g vᵀ, T = scale (vq kᵀ + q vkᵀ) and the bars means under P, row by row:
//   dg = P(T - T̄) v + P vv,   dv = (P(T - T̄))ᵀ g,   dS = softmax' of (T - T̄)(A - Ā) + g vvᵀ,
// and P(A - Ā), the gradient at S in the first derivative, is the one at T.
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
  for_each_block(q, k, causal, [&](const Block& b) {
    const Tensor p = b.probabilities(q, k), block_g = b.of_queries(g);
    const auto centred = [&](Tensor t) { return t.sub_(at::mul(p, t).sum(-1, true)); };
    const Tensor a = centred(at::bmm(block_g, b.of_keys(v).mT()));
    const Tensor t = centred(at::bmm(b.of_queries(vq_q), b.of_keys(k_vk).mT()));
    const Tensor dp = at::bmm(block_g, b.of_keys(vv).mT()).addcmul_(a, t);
    const Tensor ds = at::_softmax_backward_data(dp, p, -1, p.scalar_type());
    const Tensor at_a = t.mul_(p), at_t = a.mul_(p);
    Tensor block_dg = b.of_queries(dg), block_dq = b.of_queries(dq);
    at::bmm_out(block_dg, at_a, b.of_keys(v));
    block_dg.baddbmm_(p, b.of_keys(vv));
    b.of_keys(dv).baddbmm_(at_a.mT(), block_g);
    at::bmm_out(block_dq, ds, b.of_keys(k));
    block_dq.baddbmm_(at_t, b.of_keys(vk));
    b.of_keys(dk).baddbmm_(ds.mT(), b.of_queries(q)).baddbmm_(at_t.mT(), b.of_queries(vq));
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
