// Every op's schema. Kernels: csrc/cpu, csrc/cuda or the Triton kernels in gankernels/ops; fake and derivatives: gankernels/ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gankernels, m) {
  // Critic regularisation. The gradient in eps has no elements without real and fake.
  m.def("interpolate(Tensor real, Tensor fake, Tensor eps) -> Tensor");
  m.def("interpolate_bwd(Tensor grad, Tensor eps, Tensor? real, Tensor? fake) -> (Tensor, Tensor, Tensor)");
  m.def("grad_norm_penalty(Tensor grads, float target, bool one_sided) -> (Tensor, Tensor)");
  m.def("grad_norm_penalty_bwd(Tensor grad, Tensor grads, Tensor norms, float target, bool one_sided) -> Tensor");
  m.def(
      "grad_norm_penalty_bwd_bwd(Tensor grad_grads, Tensor grad, Tensor grads, Tensor norms, float target, bool one_sided)"
      " -> (Tensor, Tensor)");

  // Normalisation of a generator's features
  m.def("pixel_norm(Tensor x, float eps) -> Tensor");
  m.def("pixel_norm_bwd(Tensor grad, Tensor x, float eps) -> Tensor");
  m.def("pixel_norm_bwd_bwd(Tensor grad_grad, Tensor grad, Tensor x, float eps) -> (Tensor, Tensor)");

  // Normalisation of a critic's features. An output that was not asked for has no elements.
  m.def(
      "group_norm(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, bool centre) -> (Tensor, Tensor, Tensor)");
  m.def(
      "group_norm_bwd(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, int groups, bool centre, bool of_x,"
      " bool of_parameters) -> (Tensor, Tensor, Tensor)");
  m.def(
      "group_norm_bwd_bwd(Tensor grad_grad, Tensor? grad_grad_weight, Tensor? grad_grad_bias, Tensor grad, Tensor x,"
      " Tensor? weight, Tensor mean, Tensor rstd, int groups, bool centre, bool of_weight) -> (Tensor, Tensor, Tensor)");

  // An activation of critics; others are bias_act's
  m.def("gelu(Tensor x, bool tanh_form) -> Tensor");
  m.def("gelu_bwd(Tensor grad, Tensor x, bool tanh_form) -> Tensor");
  m.def("gelu_bwd_bwd(Tensor grad_grad, Tensor grad, Tensor x, bool tanh_form) -> (Tensor, Tensor)");

  // Attention. CPU kernels: csrc/autograd/attention.cpp
  m.def("attention(Tensor q, Tensor k, Tensor v, bool causal, float scale) -> (Tensor, Tensor)");
  m.def(
      "attention_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logs, bool causal, float scale)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_bwd_bwd(Tensor grad_grad_q, Tensor grad_grad_k, Tensor grad_grad_v, Tensor grad, Tensor q, Tensor k,"
      " Tensor v, bool causal, float scale) -> (Tensor, Tensor, Tensor, Tensor)");

  // Statistics over the batch, for a discriminator
  m.def("minibatch_stddev(Tensor x, int group_size, int num_channels, float eps) -> Tensor");
  m.def("minibatch_stddev_bwd(Tensor grad, Tensor x, int group_size, int num_channels, float eps) -> Tensor");
  m.def(
      "minibatch_stddev_bwd_bwd(Tensor grad_grad, Tensor grad, Tensor x, int group_size, int num_channels, float eps)"
      " -> (Tensor, Tensor)");
  m.def("minibatch_discrimination(Tensor m) -> Tensor");
  m.def("minibatch_discrimination_bwd(Tensor grad, Tensor m) -> Tensor");
  m.def("minibatch_discrimination_bwd_bwd(Tensor grad_grad, Tensor grad, Tensor m) -> (Tensor, Tensor)");

  // StyleGAN. u = scale x + noise + b, then activation `act` (see gankernels/ops/bias_act.py), gain and clamp; scale (N, C), noise
  // (N or 1, 1, ...), b (C,). saved is y where that tells the derivative, else x. Gradients of absent arguments have no elements, nor
  // has that of a y on which the derivative does not depend.
  m.def(
      "bias_act(Tensor x, Tensor? scale, Tensor? noise, Tensor? b, int act, float alpha, float gain, float? clamp) -> Tensor");
  m.def(
      "bias_act_bwd(Tensor grad, Tensor saved, Tensor? scale, Tensor? noise, Tensor? b, int act, float alpha, float gain,"
      " float? clamp) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "bias_act_bwd_bwd(Tensor v, Tensor? v_scale, Tensor? v_noise, Tensor? v_b, Tensor grad, Tensor saved, Tensor? scale,"
      " Tensor? noise, Tensor? b, int act, float alpha, float gain, float? clamp) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  // Resampling. Factors are [x, y], padding is [x0, x1, y0, y1].
  m.def(
      "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, int[] padding, bool flip_filter, float gain) -> Tensor");
  m.def(
      "filtered_lrelu(Tensor x, Tensor fu, Tensor fd, Tensor? b, int up, int down, int[] padding, float gain, float slope,"
      " float? clamp, bool flip_filter, bool save_mask) -> (Tensor, Tensor)");
  m.def(
      "filtered_lrelu_bwd(Tensor grad, Tensor mask, Tensor fu, Tensor fd, int up, int down, int[] padding, int[] middle,"
      " int[] size, float gain, float slope, bool flip_filter) -> Tensor");

  // Spectral normalisation of a group of layers. uv holds u and v of every layer in turn; `layers` names those a derivative is
  // asked for, and grads and results of the derivatives have one tensor for each of them.
  m.def(
      "spectral_norm_power_iteration_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int[] dims, int iterations,"
      " float eps) -> (Tensor, Tensor)");
  m.def("spectral_normalize(Tensor[] weights, Tensor uv, Tensor sigma, int[] dims) -> Tensor[]");
  m.def(
      "spectral_normalize_bwd(Tensor[] grads, Tensor[] weights, Tensor uv, Tensor sigma, int[] dims, int[] layers)"
      " -> Tensor[]");
  m.def(
      "spectral_normalize_bwd_bwd(Tensor[] grad_grads, Tensor[] grads, Tensor[] weights, Tensor uv, Tensor sigma,"
      " int[] dims, int[] layers) -> (Tensor[], Tensor[])");

  // Weight clipping and optimisers. Lists hold one tensor per weight; an empty list is an absent one.
  m.def("clip_weights_(Tensor(a!)[] weights, float c) -> ()");
  m.def(
      "rmsprop_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] square_avgs, Tensor(c!)[] momentum_buffers,"
      " Tensor(d!)[] grad_avgs, Tensor(e!)[] steps, Tensor(f!)[] ema, *, float lr, Tensor? lr_tensor, float alpha,"
      " float eps, float weight_decay, float momentum, bool maximize, float? clip, float ema_decay) -> ()");
  m.def(
      "adam_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor(f!)[] ema, *, float lr, Tensor? lr_tensor,"
      " float beta1, float beta2, float eps, float weight_decay, bool decoupled_weight_decay, bool maximize, float? clip,"
      " float ema_decay) -> ()");
}
