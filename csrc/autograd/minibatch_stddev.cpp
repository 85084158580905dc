// minibatch_stddev and its first derivative as autograd nodes (formulas in gankernels/ops/minibatch_stddev.py).
#include "nodes.h"

#include <torch/library.h>

namespace {

using namespace gk;

struct Groups {
  int64_t size, channels;
  double eps;
};

// Edges: grad, x.
struct MinibatchStdDevBackward : SavingNode {
  Groups groups;
  std::string name() const override { return "gankernels::MinibatchStdDevBackward"; }
  variable_list apply(variable_list&& v) override {
    if (!v[0].defined()) return {Tensor(), Tensor()};
    static const auto op = registered<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, int64_t, int64_t,
                                                                 double)>("gankernels::minibatch_stddev_bwd_bwd");
    auto [grad, x] = op.call(v[0], unpack(0), unpack(1), groups.size, groups.channels, groups.eps);
    return {grad, x};
  }
};

Tensor minibatch_stddev_bwd(const Tensor& grad, const Tensor& x, int64_t group_size, int64_t num_channels, double eps) {
  static const auto op =
      registered<Tensor(const Tensor&, const Tensor&, int64_t, int64_t, double)>("gankernels::minibatch_stddev_bwd");
  return record<MinibatchStdDevBackward>({grad, x}, [&] { return op.call(grad, x, group_size, num_channels, eps); },
                                         [&](auto& node, const Tensor&) {
                                           node.groups = {group_size, num_channels, eps};
                                           node.save({grad, x});
                                         });
}

struct MinibatchStdDev : SavingNode {
  Groups groups;
  std::string name() const override { return "gankernels::MinibatchStdDev"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {minibatch_stddev_bwd(grads[0], unpack(0), groups.size, groups.channels, groups.eps)};
  }
};

Tensor minibatch_stddev(const Tensor& x, int64_t group_size, int64_t num_channels, double eps) {
  static const auto op = registered<Tensor(const Tensor&, int64_t, int64_t, double)>("gankernels::minibatch_stddev");
  return record<MinibatchStdDev>({x}, [&] { return op.call(x, group_size, num_channels, eps); },
                                 [&](auto& node, const Tensor&) {
                                   node.groups = {group_size, num_channels, eps};
                                   node.save({x});
                                 });
}

}  // namespace

TORCH_LIBRARY_IMPL(gankernels, Autograd, m) {
  m.impl("minibatch_stddev", minibatch_stddev);
  m.impl("minibatch_stddev_bwd", minibatch_stddev_bwd);
}
