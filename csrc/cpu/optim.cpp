// RMSprop and Adam over lists of tensors: weights, state and moving average in one pass, in parallel over all of them.
#include "../optim.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kGrain = 1 << 16;  // some 50 us at the rate of one core

template <class T, bool kMomentum, bool kCentered>
GK_MULTIVERSION void rmsprop_chunk(T* __restrict__ weights, const T* __restrict__ grads, T* __restrict__ square_avgs,
                                   T* __restrict__ momentum_buffers, T* __restrict__ grad_avgs, int64_t n,
                                   const RMSpropStep<accumulate_t<T>> step) {
  using A = accumulate_t<T>;
  for (int64_t i = 0; i < n; ++i) {
    A weight = A(weights[i]), square_avg = A(square_avgs[i]), momentum_buffer = 0, grad_avg = 0;
    if constexpr (kMomentum) momentum_buffer = A(momentum_buffers[i]);
    if constexpr (kCentered) grad_avg = A(grad_avgs[i]);
    rmsprop_update(step, kMomentum, kCentered, A(grads[i]), weight, square_avg, momentum_buffer, grad_avg);
    weights[i] = T(weight);
    square_avgs[i] = T(square_avg);
    if constexpr (kMomentum) momentum_buffers[i] = T(momentum_buffer);
    if constexpr (kCentered) grad_avgs[i] = T(grad_avg);
  }
}

template <class T, bool kAmsgrad>
GK_MULTIVERSION void adam_chunk(T* __restrict__ weights, const T* __restrict__ grads, T* __restrict__ exp_avgs,
                                T* __restrict__ exp_avg_sqs, T* __restrict__ max_exp_avg_sqs, int64_t n,
                                const AdamStep<accumulate_t<T>> step) {
  using A = accumulate_t<T>;
  for (int64_t i = 0; i < n; ++i) {
    A weight = A(weights[i]), exp_avg = A(exp_avgs[i]), exp_avg_sq = A(exp_avg_sqs[i]), max_exp_avg_sq = 0;
    if constexpr (kAmsgrad) max_exp_avg_sq = A(max_exp_avg_sqs[i]);
    adam_update(step, kAmsgrad, A(grads[i]), weight, exp_avg, exp_avg_sq, max_exp_avg_sq);
    weights[i] = T(weight);
    exp_avgs[i] = T(exp_avg);
    exp_avg_sqs[i] = T(exp_avg_sq);
    if constexpr (kAmsgrad) max_exp_avg_sqs[i] = T(max_exp_avg_sq);
  }
}

// A loop of its own, over a chunk that is still in cache: in the loops above GCC would no longer vectorise Adam's.
template <class T, class A>
GK_MULTIVERSION void ema_chunk(T* __restrict__ ema, const T* __restrict__ weights, int64_t n, A ema_weight) {
  for (int64_t i = 0; i < n; ++i) ema[i] = T(lerp(A(ema[i]), A(weights[i]), ema_weight));
}

// body.operator()<bool constants...>() for flags known at run time only.
template <bool... kKnown, class Body>
void with_flags(const Body& body) {
  body.template operator()<kKnown...>();
}
template <bool... kKnown, class Body, class... Rest>
void with_flags(const Body& body, bool flag, Rest... rest) {
  flag ? with_flags<kKnown..., true>(body, rest...) : with_flags<kKnown..., false>(body, rest...);
}

// body.operator()<T>(row, column pointers advanced to the chunk..., elements) for every chunk of every row.
template <class Body>
void for_each_row_chunk(const char* op, const std::vector<OptimizerRow>& rows, const Body& body) {
  std::vector<int64_t> numels(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) numels[i] = rows[i].numel;
  for_each_tensor_chunk(numels, kGrain, [&](size_t i, int64_t begin, int64_t end) {
    dispatch_floating(op, rows[i].dtype, [&]<class T>() {
      std::array<T*, kOptimizerColumns> columns;
      for (int c = 0; c < kOptimizerColumns; ++c) {
        T* base = static_cast<T*>(rows[i].pointers[c]);
        columns[c] = base == nullptr ? nullptr : base + begin;
      }
      body.template operator()<T>(i, columns, end - begin);
    });
  });
}

double host_lr(const char* op, double lr, const std::optional<Tensor>& lr_tensor) {
  check_lr_tensor(op, lr_tensor);
  if (!lr_tensor) return lr;
  check_cpu(op, "lr_tensor", *lr_tensor);
  return host_value(*lr_tensor);
}

void rmsprop_(const TensorList& weights, const TensorList& grads, const TensorList& square_avgs,
              const TensorList& momentum_buffers, const TensorList& grad_avgs, const TensorList& steps,
              const TensorList& ema, double lr, std::optional<Tensor> lr_tensor, double alpha, double eps,
              double weight_decay, double momentum, bool maximize, std::optional<double> clip, double ema_decay) {
  const char* op = "rmsprop_";
  OptimizerRows table(op, weights);
  table.add(1, "grads", grads, OptimizerRows::read);
  table.add(2, "square_avgs", square_avgs, OptimizerRows::updated);
  table.add(3, "momentum_buffers", momentum_buffers, OptimizerRows::updated_if_given);
  table.add(4, "grad_avgs", grad_avgs, OptimizerRows::updated_if_given);
  table.add(5, "ema", ema, OptimizerRows::updated_if_given);
  check_steps(op, weights, steps);
  const RMSpropStep<double> step =
      rmsprop_step(op, host_lr(op, lr, lr_tensor), alpha, eps, weight_decay, momentum, maximize, clip, ema_decay);
  increment_host_steps(steps);
  for_each_row_chunk(op, table.rows, [&]<class T>(size_t, const std::array<T*, kOptimizerColumns>& c, int64_t n) {
    const auto numbers = step.as<accumulate_t<T>>();
    const auto chunk = [&]<bool kMomentum, bool kCentered>() {
      rmsprop_chunk<T, kMomentum, kCentered>(c[0], c[1], c[2], c[3], c[4], n, numbers);
    };
    with_flags(chunk, c[3] != nullptr, c[4] != nullptr);
    if (c[5] != nullptr) ema_chunk(c[5], c[0], n, numbers.ema_weight);
  });
  table.write_back();
}

void adam_(const TensorList& weights, const TensorList& grads, const TensorList& exp_avgs,
           const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& steps,
           const TensorList& ema, double lr, std::optional<Tensor> lr_tensor, double beta1, double beta2, double eps,
           double weight_decay, bool decoupled_weight_decay, bool maximize, std::optional<double> clip,
           double ema_decay) {
  const char* op = "adam_";
  OptimizerRows table(op, weights);
  table.add(1, "grads", grads, OptimizerRows::read);
  table.add(2, "exp_avgs", exp_avgs, OptimizerRows::updated);
  table.add(3, "exp_avg_sqs", exp_avg_sqs, OptimizerRows::updated);
  table.add(4, "max_exp_avg_sqs", max_exp_avg_sqs, OptimizerRows::updated_if_given);
  table.add(5, "ema", ema, OptimizerRows::updated_if_given);
  check_steps(op, weights, steps);
  const AdamStep<double> step = adam_step(op, host_lr(op, lr, lr_tensor), beta1, beta2, eps, weight_decay,
                                          decoupled_weight_decay, maximize, clip, ema_decay);
  const std::vector<double> counts = increment_host_steps(steps);
  for_each_row_chunk(op, table.rows, [&]<class T>(size_t i, const std::array<T*, kOptimizerColumns>& c, int64_t n) {
    const auto numbers = with_bias_corrections(step, beta1, beta2, counts[i]).as<accumulate_t<T>>();
    const auto chunk = [&]<bool kAmsgrad>() {
      adam_chunk<T, kAmsgrad>(c[0], c[1], c[2], c[3], c[4], n, numbers);
    };
    with_flags(chunk, c[4] != nullptr);
    if (c[5] != nullptr) ema_chunk(c[5], c[0], n, numbers.ema_weight);
  });
  table.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("rmsprop_", TORCH_BOX(&rmsprop_));
  m.impl("adam_", TORCH_BOX(&adam_));
}

}  // namespace gankernels
