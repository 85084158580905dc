// Convolutions, linear layers, piecewise-linear activations and pooling whose second derivatives cost what they must.
//
// Stock autograd's double backward pushes tensors of zeros through the whole network: the derivative of leaky_relu_backward in its
// input is zeros rather than absent, and convolution's double backward hands a zero gradient to its input. It also computes
// the weight's gradient as a forward convolution whose kernel is a whole feature map. The nodes here leave absent gradients
// absent and use the native weight-gradient kernel; each family is closed under differentiation, so every order is exact.
//
// These ops rearrange kernels, mostly stock's, so a call must cost what an aten call costs and a backward must know what this
// backward asks for: they are C++ autograd functions in an ordinary extension (see docs in gankernels/ops/fast_double_backward.py).
// They are CompositeImplicitAutograd: torch.compile, functionalization and fake tensors see through them to aten.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>

#include "fold.h"
#include "image_gradient.h"
#include "winograd.h"

namespace {

using namespace gk;
using torch::autograd::AutogradContext;
using torch::autograd::Function;

// ---------------------------------------------------------------------------------------------------------------------
// Products y = P(x, w) + b, linear in x and in w. With g the gradient at y:
//   input(g, w) is the gradient in x,  weight(g, x) the gradient in w,
// and the derivatives of the three maps are the three maps again. kept(x, w) is what backward needs of x: where w is frozen, maybe nothing.
// ---------------------------------------------------------------------------------------------------------------------

Tensor channel_sums(const Tensor& g) {
  std::vector<int64_t> dims{0};
  for (int64_t i = 2; i < g.dim(); ++i) dims.push_back(i);
  return g.sum(dims);
}

// Each sample times its weight.
Tensor channel_sums(const Tensor& g, const Tensor& row_weights) {
  std::vector<int64_t> dims;
  for (int64_t i = 2; i < g.dim(); ++i) dims.push_back(i);
  return at::mv((dims.empty() ? g : g.sum(dims)).t(), row_weights);
}

struct Convolution : torch::CustomClassHolder, Geometry {
  static constexpr auto name = "gankernels::Convolution";

  Tensor kept(const Tensor& x, const Tensor&) const { return x; }
  Tensor forward(const Tensor& x, const Tensor& w, const optional<Tensor>& b) const {
    const Tensor bias = b.value_or(Tensor());
    if (winograd::fits(*this, x, w, bias)) return winograd::convolution(*this, x, w, bias);
    return at::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups);
  }
  // x and w also say what shapes and memory formats the gradients have
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& g, const Tensor& x, const Tensor& w,
                                              std::array<bool, 3> mask) const {
    if (winograd::fits(*this, x, w, g))
      return {mask[0] ? winograd::input_gradient(*this, g, x, w) : Tensor(),
              mask[1] ? winograd::weight_gradient(*this, g, x, w) : Tensor(), mask[2] ? bias_gradient(g) : Tensor()};
    const int64_t channels = w.size(transposed ? 1 : 0) * (transposed ? groups : 1);
    at::OptionalIntArrayRef bias_sizes;
    if (mask[2]) bias_sizes = at::OptionalIntArrayRef(IntArrayRef(channels));
    if (mask[0] && !transposed && is_of_image(g, w, dilation, groups)) {
      Tensor gw, gb;
      if (mask[1] || mask[2]) std::tie(std::ignore, gw, gb) = backward(g, x, w, {false, mask[1], mask[2]});
      return {image_gradient(g, w, x.sizes(), stride, padding), gw, gb};
    }
    return at::convolution_backward(g, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask);
  }
  Tensor bias_gradient(const Tensor& g) const { return channel_sums(g); }
  Tensor bias_gradient(const Tensor& g, const Tensor& row_weights) const { return channel_sums(g, row_weights); }
};

struct Linear : torch::CustomClassHolder {
  static constexpr auto name = "gankernels::Linear";
  Tensor kept(const Tensor& x, const Tensor& w) const { return w.requires_grad() ? x : Tensor(); }
  Tensor forward(const Tensor& x, const Tensor& w, const optional<Tensor>& b) const { return at::linear(x, w, b); }
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& g, const Tensor& x, const Tensor& w,
                                              std::array<bool, 3> mask) const {
    Tensor gx, gw, gb;
    if (mask[0]) gx = g.dim() == 2 ? at::mm(g, w) : at::matmul(g, w);
    if (mask[1]) gw = at::mm(g.reshape({-1, w.size(0)}).t(), x.reshape({-1, w.size(1)}));
    if (mask[2]) gb = bias_gradient(g);
    return {gx, gw, gb};
  }
  Tensor bias_gradient(const Tensor& g) const { return g.reshape({-1, g.size(-1)}).sum(0); }
  Tensor bias_gradient(const Tensor& g, const Tensor& row_weights) const {
    std::vector<int64_t> dims;
    for (int64_t i = 1; i < g.dim() - 1; ++i) dims.push_back(i);
    return at::mv((dims.empty() ? g : g.sum(dims)).t(), row_weights);
  }
};

// A single image in channels_last may have any stride along the batch, by which the batch norm of PyTorch 2.13 confuses the layouts of
// image and gradient.
Tensor usually_strided(const Tensor& x) { return x.sym_size(0) == 1 ? x.contiguous() : x; }

// y[c] = w[c] x[c] + b[c] over dimension 1: batch norm with fixed statistics, by its own kernels.
struct ChannelAffine : torch::CustomClassHolder {
  static constexpr auto name = "gankernels::ChannelAffine";
  Tensor kept(const Tensor& x, const Tensor&) const { return x; }
  Tensor forward(const Tensor& x, const Tensor& w, const optional<Tensor>& b) const {
    return std::get<0>(at::native_batch_norm(x, w, b, at::zeros_like(w), at::ones_like(w), false, 0, 0));
  }
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& g, const Tensor& x, const Tensor& w,
                                              std::array<bool, 3> mask) const {
    return at::native_batch_norm_backward(usually_strided(g), usually_strided(x), w, at::zeros_like(w), at::ones_like(w), {}, {}, false, 0,
                                          mask);
  }
  Tensor bias_gradient(const Tensor& g) const { return channel_sums(g); }
  Tensor bias_gradient(const Tensor& g, const Tensor& row_weights) const { return channel_sums(g, row_weights); }
};

// A product among autograd's nodes, with edges to what it multiplies.
template <class P>
struct ProductBase : SavingNode {
  StatePtr<P> product;
  Tensor bias;  // its shape and its edge: that its numbers change matters to nobody
  void keep(const StatePtr<P>& p, const variable_list& tensors, const Tensor& b = {}) {
    product = p;
    bias = b;
    save(tensors);
  }
  void release_variables() override {
    SavingNode::release_variables();
    bias.reset();
  }
};

template <class P>
struct Product;
template <class P>
struct ProductInput;
template <class P>
struct ProductWeight;

template <class P>
Tensor product_of(const Tensor& x, const Tensor& w, const Tensor& b, const StatePtr<P>& p) {
  return record<Product<P>>({x, w, b}, [&] { return p->forward(x, w, b.defined() ? optional<Tensor>(b) : std::nullopt); },
                            [&](auto& node, const Tensor&) { node.keep(p, {p->kept(x, w), w}, b); });
}

// x is here for its shape, and for the fold
template <class P>
Tensor input_gradient(const Tensor& g, const Tensor& w, const Tensor& b, const Tensor& x, const StatePtr<P>& p,
                      const FoldPtr& fold = {}) {
  return record<ProductInput<P>>({g, w, b}, [&] { return std::get<0>(p->backward(g, x, w, {true, false, false})); },
                                 [&](auto& node, const Tensor&) {
                                   node.keep(p, {g, w, x}, b);
                                   node.fold = fold;
                                 });
}

template <class P>
Tensor weight_gradient(const Tensor& g, const Tensor& x, const Tensor& w, const StatePtr<P>& p) {
  return record<ProductWeight<P>>({g, x}, [&] { return std::get<1>(p->backward(g, x, w, {false, true, false})); },
                                  [&](auto& node, const Tensor&) { node.keep(p, {g, x, w}); });
}

template <class P>
struct Product : ProductBase<P>, KnowsRows, FoldsWeights {
  std::string name() const override { return P::name; }
  bool keeps_rows(size_t input, c10::SymIntArrayRef in, c10::SymIntArrayRef out) const override {
    return input == 0 && in.size() >= 2 && out[0] == in[0];
  }
  variable_list apply(variable_list&& grads) override {
    const Tensor& g = grads[0];
    if (!g.defined()) return {Tensor(), Tensor(), Tensor()};
    const Tensor x = this->unpack(0), w = this->unpack(1);
    const bool needs_x = this->wants(0), needs_w = this->wants(1) && wants_weights(), needs_b = this->wants(2);
    Tensor gx, gw, gb;
    if (!at::GradMode::is_enabled()) {
      std::tie(gx, gw, gb) = this->product->backward(g, x, w, {needs_x, needs_w, needs_b});
    } else {
      if (needs_x) gx = input_gradient(g, w, this->bias, x, this->product, fold);
      if (needs_w) gw = weight_gradient(g, x, w, this->product);
      if (needs_b) gb = this->product->bias_gradient(g);
    }
    return {gx, gw, gb};
  }
};

template <class P>
struct ProductInput : ProductBase<P> {
  FoldPtr fold;
  std::string name() const override { return std::string(P::name) + "Input"; }
  variable_list apply(variable_list&& grads) override {
    const Tensor& v = grads[0];
    const bool folds = fold && fold->slopes.defined();
    if (!v.defined() && !folds) return {Tensor(), Tensor(), Tensor()};
    const Tensor g = this->unpack(0), w = this->unpack(1);
    Tensor gg, gw, gb;
    if (this->wants(0) && v.defined()) gg = product_of(v, w, Tensor(), this->product);
    if (this->wants(1) && wants_weights()) {
      Tensor t = v;
      if (folds) {
        const Tensor x = this->unpack(2), slopes = fold->rows(x);
        t = v.defined() ? at::addcmul(v, x, slopes) : x * slopes;
      }
      gw = weight_gradient(g, t, w, this->product);
    }
    // The bias does not enter the penalty. Zero rather than absent where stock has zeros, below another layer: optimisers and
    // data-parallel reducers count on that .grad.
    if (this->wants(2)) {
      if (folds)
        gb = this->product->bias_gradient(g, fold->rows(g).reshape({-1}));
      else if (this->wants(0))
        gb = at::zeros_like(this->bias);
    }
    return {gg, gw, gb};
  }
};

template <class P>
struct ProductWeight : ProductBase<P> {
  std::string name() const override { return std::string(P::name) + "Weight"; }
  variable_list apply(variable_list&& grads) override {
    const Tensor& v = grads[0];
    if (!v.defined()) return {Tensor(), Tensor()};
    const Tensor g = this->unpack(0), x = this->unpack(1);
    Tensor gg, gx;
    if (this->wants(0)) gg = product_of(x, v, Tensor(), this->product);
    if (this->wants(1)) gx = input_gradient(g, v, Tensor(), x, this->product);
    return {gg, gx};
  }
};

// A node computes below autograd, so autocast's casts are made, and recorded, before it.
template <class P>
Tensor product(const Tensor& x, const Tensor& w, const optional<Tensor>& b, const StatePtr<P>& state) {
  const auto device = x.device().type();
  if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device))
    return product_of(x, w, b.value_or(Tensor()), state);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(dtype, t, device); };
  return product_of(cast(x), cast(w), b ? cast(*b) : Tensor(), state);
}

std::vector<int64_t> per_dimension(IntArrayRef values, int64_t dimensions) {
  return values.size() == 1 ? std::vector<int64_t>(dimensions, values[0]) : values.vec();
}

Tensor convolution(const Tensor& x, const Tensor& w, const optional<Tensor>& b, IntArrayRef stride, IntArrayRef padding,
                   IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  const int64_t dimensions = w.dim() - 2;
  TORCH_CHECK(x.dim() == dimensions + 2, "gankernels.fast_convolution: input must have ", dimensions + 2,
              " dimensions, batch first, got shape ", x.sizes());
  auto state = c10::make_intrusive<Convolution>();
  state->stride = per_dimension(stride, dimensions);
  state->padding = per_dimension(padding, dimensions);
  state->dilation = per_dimension(dilation, dimensions);
  state->output_padding = per_dimension(output_padding, dimensions);
  state->transposed = transposed;
  state->groups = groups;
  return product(x, w, b, state);
}

Tensor linear(const Tensor& x, const Tensor& w, const optional<Tensor>& b) {
  static const auto state = c10::make_intrusive<Linear>();
  return product(x, w, b, state);
}

Tensor channel_affine(const Tensor& x, const Tensor& w, const Tensor& b) {
  static const auto state = c10::make_intrusive<ChannelAffine>();
  return product_of(x, w, b, state);
}

// ---------------------------------------------------------------------------------------------------------------------
// Local maps y = f(x) that are linear around almost every x: pull(g) applies the transpose of the Jacobian, push(v) the
// Jacobian; neither depends on x any further. `saved` is what fixes the Jacobian: a sign pattern, indices, or just a shape.
// ---------------------------------------------------------------------------------------------------------------------

struct LocalMap : torch::CustomClassHolder {
  // returns {y, saved...}; `saved` may repeat x or y
  virtual variable_list value(const Tensor& x) const = 0;
  virtual Tensor pull(const Tensor& g, const variable_list& saved) const = 0;
  virtual Tensor push(const Tensor& v, const variable_list& saved) const { return pull(v, saved); }  // diagonal maps
  // g <- pull(g) = push(g), by maps that can; false from others
  virtual bool pull_(Tensor& g, const variable_list& saved) const { return false; }
  // how many of the last dimensions it relates; those before are batch and channels
  virtual int64_t dimensions() const { return 0; }
};

// Whether autograd's engine has handed over the only reference to this memory: then a pass may write its result there, and spares
// a fresh feature map with its page faults.
bool is_ours_alone(const Tensor& g) {
  // memory that is not resizable may be somebody's array
  return !is_traced(g) && g.use_count() == 1 && g.has_storage() && g.storage().use_count() == 1 && g.storage().resizable() &&
         g.is_non_overlapping_and_dense();
}

// The Jacobian of a local map as a pair of nodes, each the other's derivative.
template <bool transpose>
struct LinearPass : SavingNode {
  StatePtr<LocalMap> map;
  static Tensor of(const Tensor& t, const StatePtr<LocalMap>& map, const variable_list& saved, bool overwrite = false) {
    const auto pass = [&] {
      if (overwrite) {
        Tensor result = t.tensor_data();
        if (map->pull_(result, saved)) return result;
      }
      return transpose ? map->pull(t, saved) : map->push(t, saved);
    };
    return record<LinearPass>({t}, pass,
                              [&](auto& node, const Tensor&) {
                                node.map = map;
                                node.save(saved);
                              });
  }
  std::string name() const override { return transpose ? "gankernels::Pull" : "gankernels::Push"; }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    const bool overwrite = is_ours_alone(grads[0]);
    variable_list tensors;
    for (size_t i = 0; i < saved.size(); ++i) tensors.push_back(unpack(i));
    return {LinearPass<!transpose>::of(grads[0], map, tensors, overwrite)};
  }
};

struct Local : SavingNode, KnowsRows {
  StatePtr<LocalMap> map;
  std::string name() const override { return "gankernels::Local"; }
  bool keeps_rows(size_t, c10::SymIntArrayRef in, c10::SymIntArrayRef out) const override {
    return map->dimensions() == 0 ? in == out : int64_t(in.size()) == map->dimensions() + 2 && in[0] == out[0];
  }
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    const bool overwrite = is_ours_alone(grads[0]);
    variable_list tensors;
    for (size_t i = 0; i < saved.size(); ++i) tensors.push_back(unpack(i));
    return {LinearPass<true>::of(grads[0], map, tensors, overwrite)};
  }
};

// In place a torch::autograd::Function: it knows views and version counters.
struct LocalInplace : Function<LocalInplace> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const StatePtr<LocalMap>& map) {
    const variable_list result = map->value(x);
    ctx->mark_dirty({x});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(variable_list(result.begin() + 1, result.end()));
    ctx->saved_data["map"] = c10::IValue::make_capsule(map);
    return x;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const auto map = c10::static_intrusive_pointer_cast<LocalMap>(ctx->saved_data["map"].toCapsule());
    return {LinearPass<true>::of(grads[0], map, ctx->get_saved_variables()), Tensor()};
  }
};

template <class Map, class... Arguments>
Tensor local(const Tensor& x, Arguments... arguments) {
  const StatePtr<LocalMap> map = c10::make_intrusive<Map>(arguments...);
  variable_list result;
  return record<Local>({x}, [&] { return (result = map->value(x))[0]; },
                       [&](auto& node, const Tensor& y) {
                         node.map = map;
                         node.save(variable_list(result.begin() + 1, result.end()), y);
                       });
}

// What an activation keeps is what stock's does, so that a network may write in place to the other.
struct LeakyReLU : LocalMap {
  double slope;
  bool inplace;
  LeakyReLU(double slope, bool inplace) : slope(slope), inplace(inplace) {}
  variable_list value(const Tensor& x) const override {
    if (inplace) {
      Tensor y = x;
      at::leaky_relu_(y, slope);
      return {y, y};
    }
    Tensor y = slope == 0 ? at::relu(x) : at::leaky_relu(x, slope);
    return {y, slope == 0 ? y : x};
  }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    // Below a flatten, channels_last features get a contiguous gradient. Reordered here, once, it need not be in the convolution below,
    // which would do so for either of its gradients.
    const auto format = saved[0].suggest_memory_format();
    const Tensor h = g.suggest_memory_format() == format ? g : g.contiguous(format);
    if (slope == 0) return at::threshold_backward(h, saved[0], 0);
    return at::leaky_relu_backward(h, saved[0], slope, inplace);
  }
  bool pull_(Tensor& g, const variable_list& saved) const override {
    if (g.strides() != saved[0].strides() || g.scalar_type() != saved[0].scalar_type()) return false;
    if (slope == 0)
      at::threshold_backward_out(g, g, saved[0], 0);
    else
      at::leaky_relu_backward_out(g, g, saved[0], slope, inplace);
    return true;
  }
};

struct Hardtanh : LocalMap {
  double low, high;
  Hardtanh(double low, double high) : low(low), high(high) {}
  variable_list value(const Tensor& x) const override {
    return {at::hardtanh(x, low, high), x};  // a bound that is rounded, in y, may be beyond the bound
  }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return at::hardtanh_backward(g, saved[0], low, high);
  }
};

struct Threshold : LocalMap {
  double threshold, constant;
  Threshold(double threshold, double constant) : threshold(threshold), constant(constant) {}
  variable_list value(const Tensor& x) const override { return {at::threshold(x, threshold, constant), x}; }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return at::threshold_backward(g, saved[0], threshold);
  }
};

struct Abs : LocalMap {
  variable_list value(const Tensor& x) const override { return {at::abs(x), x}; }
  Tensor pull(const Tensor& g, const variable_list& saved) const override { return at::mul(g, at::sgn(saved[0])); }
};

struct MaxPool : LocalMap {
  int64_t dimensions() const override { return int64_t(kernel.size()); }
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool ceil_mode;
  MaxPool(IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode)
      : kernel(kernel.vec()), stride(stride.vec()), padding(padding.vec()), dilation(dilation.vec()), ceil_mode(ceil_mode) {}
  variable_list value(const Tensor& x) const override {
    auto [y, indices] = kernel.size() == 3
                            ? at::max_pool3d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
                            : at::max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode);
    return {y, x, indices};
  }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return kernel.size() == 3
               ? at::max_pool3d_with_indices_backward(g, saved[0], kernel, stride, padding, dilation, ceil_mode, saved[1])
               : at::max_pool2d_with_indices_backward(g, saved[0], kernel, stride, padding, dilation, ceil_mode, saved[1]);
  }
  Tensor push(const Tensor& v, const variable_list& saved) const override {
    const int64_t first = -int64_t(kernel.size());
    return v.flatten(first).gather(-1, saved[1].flatten(first)).view_as(saved[1]);
  }
};

struct AdaptiveMaxPool2d : LocalMap {
  std::vector<int64_t> size;
  explicit AdaptiveMaxPool2d(IntArrayRef size) : size(size.vec()) {}
  variable_list value(const Tensor& x) const override {
    auto [y, indices] = at::adaptive_max_pool2d(x, size);
    return {y, x, indices};
  }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return at::adaptive_max_pool2d_backward(g, saved[0], saved[1]);
  }
  Tensor push(const Tensor& v, const variable_list& saved) const override {
    return v.flatten(-2).gather(-1, saved[1].flatten(-2)).view_as(saved[1]);
  }
};

struct AvgPool : LocalMap {
  int64_t dimensions() const override { return int64_t(kernel.size()); }
  std::vector<int64_t> kernel, stride, padding;
  bool ceil_mode, count_include_pad;
  optional<int64_t> divisor;
  AvgPool(IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode, bool count_include_pad,
          optional<int64_t> divisor)
      : kernel(kernel.vec()),
        stride(stride.vec()),
        padding(padding.vec()),
        ceil_mode(ceil_mode),
        count_include_pad(count_include_pad),
        divisor(divisor) {}
  Tensor push(const Tensor& v, const variable_list&) const override {
    return kernel.size() == 3 ? at::avg_pool3d(v, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
                              : at::avg_pool2d(v, kernel, stride, padding, ceil_mode, count_include_pad, divisor);
  }
  variable_list value(const Tensor& x) const override { return {push(x, {}), x}; }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return kernel.size() == 3
               ? at::avg_pool3d_backward(g, saved[0], kernel, stride, padding, ceil_mode, count_include_pad, divisor)
               : at::avg_pool2d_backward(g, saved[0], kernel, stride, padding, ceil_mode, count_include_pad, divisor);
  }
};

struct AdaptiveAvgPool2d : LocalMap {
  int64_t dimensions() const override { return 2; }
  std::vector<int64_t> size;
  explicit AdaptiveAvgPool2d(IntArrayRef size) : size(size.vec()) {}
  Tensor push(const Tensor& v, const variable_list&) const override { return at::_adaptive_avg_pool2d(v, size); }
  variable_list value(const Tensor& x) const override { return {push(x, {}), x}; }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return at::_adaptive_avg_pool2d_backward(g, saved[0]);
  }
};

struct ReflectionPad : LocalMap {
  int64_t dimensions() const override { return int64_t(padding.size()) / 2; }
  std::vector<int64_t> padding;
  explicit ReflectionPad(IntArrayRef padding) : padding(padding.vec()) {}
  Tensor push(const Tensor& v, const variable_list&) const override {
    return padding.size() == 2 ? at::reflection_pad1d(v, padding) : at::reflection_pad2d(v, padding);
  }
  variable_list value(const Tensor& x) const override { return {push(x, {}), x}; }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return padding.size() == 2 ? at::reflection_pad1d_backward(g, saved[0], padding)
                               : at::reflection_pad2d_backward(g, saved[0], padding);
  }
};

struct ReplicationPad : LocalMap {
  int64_t dimensions() const override { return int64_t(padding.size()) / 2; }
  std::vector<int64_t> padding;
  explicit ReplicationPad(IntArrayRef padding) : padding(padding.vec()) {}
  Tensor push(const Tensor& v, const variable_list&) const override {
    return padding.size() == 2 ? at::replication_pad1d(v, padding) : at::replication_pad2d(v, padding);
  }
  variable_list value(const Tensor& x) const override { return {push(x, {}), x}; }
  Tensor pull(const Tensor& g, const variable_list& saved) const override {
    return padding.size() == 2 ? at::replication_pad1d_backward(g, saved[0], padding)
                               : at::replication_pad2d_backward(g, saved[0], padding);
  }
};

Tensor leaky_relu(const Tensor& x, double slope) { return local<LeakyReLU>(x, slope, false); }

Tensor leaky_relu_(Tensor x, double slope) {
  TORCH_CHECK(slope >= 0, "gankernels.fast_leaky_relu_: in place, the slope must be >= 0, got ", slope);
  return LocalInplace::apply(x, StatePtr<LocalMap>(c10::make_intrusive<LeakyReLU>(slope, true)));
}

Tensor hardtanh(const Tensor& x, double low, double high) { return local<Hardtanh>(x, low, high); }
Tensor threshold(const Tensor& x, double threshold, double value) { return local<Threshold>(x, threshold, value); }
Tensor absolute(const Tensor& x) { return local<Abs>(x); }

Tensor max_pool(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                bool ceil_mode) {
  return local<MaxPool>(x, kernel, stride, padding, dilation, ceil_mode);
}

bool both_are(int64_t number, IntArrayRef pair) { return pair.size() == 2 && pair[0] == number && pair[1] == number; }

// The mean over 2x2 of a convolution is a convolution of stride 2 by the mean of its kernel's four shifts: (k + 1)^2 products where the
// convolution takes 4 k^2. It has run by now, and its mean is taken, but every further pass is over the other; a compiler finds that
// the convolution itself is not needed. Undefined where y is not such a convolution, or may be not what it returned, or somebody
// listens to its gradient.
Tensor pooled_convolution(const Tensor& y) {
  const NodePtr node = y.grad_fn();
  auto* convolution = dynamic_cast<Product<Convolution>*>(node.get());
  if (!convolution || y._version() != 0 || has_hooks(*node)) return {};
  const Convolution& before = *convolution->product;
  const Tensor x = convolution->unpack(0), w = convolution->unpack(1), b = convolution->bias;
  if (before.transposed || !both_are(1, before.stride) || !both_are(1, before.dilation) || std::min(w.size(2), w.size(3)) < 3) return {};
  auto strided = c10::make_intrusive<Convolution>(before);
  strided->stride = {2, 2};
  const Tensor pooled = at::avg_pool2d(at::constant_pad_nd(w, {1, 1, 1, 1}), {2, 2}, {1, 1}, {0, 0});  // inductor wants both paddings
  if (is_traced(y)) return product_of(x, pooled, b, strided);
  return record<Product<Convolution>>({x, pooled, b}, [&] { return at::avg_pool2d(y, {2, 2}, {2, 2}); },
                                      [&](auto& node, const Tensor&) { node.keep(strided, {x, pooled}, b); });
}

Tensor avg_pool(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                bool count_include_pad, optional<int64_t> divisor) {
  if (both_are(2, kernel) && both_are(2, stride) && both_are(0, padding) && !ceil_mode && !divisor && x.sym_size(2) > 1 && x.sym_size(3) > 1)
    if (Tensor y = pooled_convolution(x); y.defined()) return y;
  return local<AvgPool>(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor);
}

Tensor adaptive_max_pool2d(const Tensor& x, IntArrayRef size) { return local<AdaptiveMaxPool2d>(x, size); }
Tensor adaptive_avg_pool2d(const Tensor& x, IntArrayRef size) { return local<AdaptiveAvgPool2d>(x, size); }
Tensor reflection_pad(const Tensor& x, IntArrayRef padding) { return local<ReflectionPad>(x, padding); }
Tensor replication_pad(const Tensor& x, IntArrayRef padding) { return local<ReplicationPad>(x, padding); }

// A leaf that shares x's memory. torch.compile traces this where it would not trace x.requires_grad_().
Tensor leaf(const Tensor& x) { return x.detach().requires_grad_(); }

void disable_weight_gradients(int64_t change) { weight_gradients_disabled += int(change); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(gankernels, m) {
  m.def(
      "fast_convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "bool transposed, int[] output_padding, int groups) -> Tensor",
      convolution);
  m.def("fast_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor", linear);
  m.def("fast_channel_affine(Tensor input, Tensor weight, Tensor bias) -> Tensor", channel_affine);
  m.def("fast_leaky_relu(Tensor input, float slope) -> Tensor", leaky_relu);
  m.def("fast_leaky_relu_(Tensor(a!) input, float slope) -> Tensor(a!)", leaky_relu_);
  m.def("fast_hardtanh(Tensor input, float low, float high) -> Tensor", hardtanh);
  m.def("fast_threshold(Tensor input, float threshold, float value) -> Tensor", threshold);
  m.def("fast_abs(Tensor input) -> Tensor", absolute);
  m.def(
      "fast_max_pool(Tensor input, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
      max_pool);
  m.def(
      "fast_avg_pool(Tensor input, int[] kernel, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
      "int? divisor) -> Tensor",
      avg_pool);
  m.def("fast_adaptive_max_pool2d(Tensor input, int[] size) -> Tensor", adaptive_max_pool2d);
  m.def("fast_adaptive_avg_pool2d(Tensor input, int[] size) -> Tensor", adaptive_avg_pool2d);
  m.def("fast_reflection_pad(Tensor input, int[] padding) -> Tensor", reflection_pad);
  m.def("fast_replication_pad(Tensor input, int[] padding) -> Tensor", replication_pad);
  declare_keeps_rows(c10::demangle(typeid(torch::autograd::CppNode<LocalInplace>).name()));  // its maps are pointwise
  m.def("leaf(Tensor(a) input) -> Tensor(a)", leaf);
  m.def("disable_weight_gradients(int change) -> ()", disable_weight_gradients);
  m.def("autograd_built_for() -> str", []() { return std::string(GANKERNELS_BUILT_FOR); });
}
