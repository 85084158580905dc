// The optimisers' formulas for one element, shared by the CPU loops and the CUDA kernels. They are torch.optim's,
// followed by the clip of the updated weight; what a step needs besides tensors is in the two structs below.
#pragma once

#include <cmath>
#include <limits>

#if defined(__CUDACC__)
#define GK_UPDATE __host__ __device__ __forceinline__
#else
#define GK_UPDATE \
  inline __attribute__((always_inline))  // the loops' instruction set reaches only what is inlined in them
#endif

namespace gankernels {

// Differences such as 1 - alpha are taken in double before they are rounded to the dtype of the arithmetic.
template <class A>
struct RMSpropStep {
  A lr, alpha, one_minus_alpha, eps, weight_decay, momentum, sign, clip, ema_weight;

  template <class B>
  RMSpropStep<B> as() const {
    return {B(lr), B(alpha), B(one_minus_alpha), B(eps), B(weight_decay), B(momentum), B(sign), B(clip), B(ema_weight)};
  }
};

template <class A>
struct AdamStep {
  A lr, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, sign, clip, ema_weight;
  A bias_correction1, bias_correction2_sqrt;
  bool decoupled_weight_decay;

  template <class B>
  AdamStep<B> as() const {
    return {B(lr),
            B(one_minus_beta1),
            B(beta2),
            B(one_minus_beta2),
            B(eps),
            B(weight_decay),
            B(sign),
            B(clip),
            B(ema_weight),
            B(bias_correction1),
            B(bias_correction2_sqrt),
            decoupled_weight_decay};
  }
};

// The bound of an update without clip.
constexpr double kNoClip = std::numeric_limits<double>::infinity();

// NaN stays: comparisons with it are false.
template <class A>
GK_UPDATE A clip_to(A w, A bound) {
  return w > bound ? bound : (w < -bound ? -bound : w);
}

// Exact at weight 0 and 1, as torch.lerp is. Selects rather than branches: two branches in a loop and GCC no longer vectorises it.
template <class A>
GK_UPDATE A lerp(A start, A end, A weight) {
  const bool low = weight < A(0.5);
  return (low ? start : end) + (low ? weight : weight - A(1)) * (end - start);
}

template <class A>
GK_UPDATE void rmsprop_update(const RMSpropStep<A>& s, bool with_momentum, bool centered, A grad, A& weight,
                              A& square_avg, A& momentum_buffer, A& grad_avg) {
  A g = s.sign * grad;
  g = s.weight_decay != A(0) ? g + s.weight_decay * weight : g;
  square_avg = s.alpha * square_avg + s.one_minus_alpha * (g * g);
  A variance = square_avg;
  if (centered) {
    grad_avg = lerp(grad_avg, g, s.one_minus_alpha);
    variance -= grad_avg * grad_avg;
  }
  A direction = g / (std::sqrt(variance) + s.eps);
  if (with_momentum) {
    momentum_buffer = s.momentum * momentum_buffer + direction;
    direction = momentum_buffer;
  }
  weight = clip_to(weight - s.lr * direction, s.clip);
}

template <class A>
GK_UPDATE void adam_update(const AdamStep<A>& s, bool amsgrad, A grad, A& weight, A& exp_avg, A& exp_avg_sq,
                           A& max_exp_avg_sq) {
  A g = s.sign * grad;
  const A decay = s.decoupled_weight_decay ? A(1) - s.lr * s.weight_decay : A(1);
  g = s.weight_decay != A(0) && !s.decoupled_weight_decay ? g + s.weight_decay * weight : g;
  exp_avg = lerp(exp_avg, g, s.one_minus_beta1);
  exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * (g * g);
  A second_moment = exp_avg_sq;
  if (amsgrad) {
    // as torch.maximum: NaN on either side wins
    max_exp_avg_sq = max_exp_avg_sq >= exp_avg_sq || max_exp_avg_sq != max_exp_avg_sq ? max_exp_avg_sq : exp_avg_sq;
    second_moment = max_exp_avg_sq;
  }
  const A denominator = std::sqrt(second_moment) / s.bias_correction2_sqrt + s.eps;
  weight = clip_to(decay * weight - s.lr / s.bias_correction1 * (exp_avg / denominator), s.clip);
}

}  // namespace gankernels
