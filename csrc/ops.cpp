// Every op's schema. Kernels: csrc/cpu, csrc/cuda or the Triton kernels in gankernels/ops; fake and derivatives: gankernels/ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gankernels, m) {
  // Critic regularisation
  m.def("interpolate(Tensor real, Tensor fake, Tensor eps) -> Tensor");
  m.def("interpolate_bwd(Tensor grad, Tensor eps) -> (Tensor, Tensor)");
  m.def("grad_norm_penalty(Tensor grads, float target, bool one_sided) -> (Tensor, Tensor)");
  m.def("grad_norm_penalty_bwd(Tensor grad, Tensor grads, Tensor norms, float target, bool one_sided) -> Tensor");
  m.def(
      "grad_norm_penalty_bwd_bwd(Tensor grad_grads, Tensor grad, Tensor grads, Tensor norms, float target, bool one_sided)"
      " -> (Tensor, Tensor)");

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
}
