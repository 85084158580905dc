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
}
