// Reads a critic's autograd graph: which nodes stand between score and input, and whether they keep samples apart.
//
// Samples are kept apart when the gradient that arrives for sample i leaves for sample i alone, node by node. A tensor on the way
// holds its samples in order along dimension 0, an equal number of rows for each; every rule below preserves that. What a node
// computed without gradient (a detached statistic, a mask) does not matter. Nor may a node end the graph of the input's gradient, as sgn
// and x^0 do, whose gradient is a tensor of zeros: the layers above it would not hear of the loss. A node without a rule is not trusted.
#include <torch/csrc/autograd/generated/Functions.h>

#include <cstring>
#include <mutex>
#include <set>
#include <typeinfo>
#include <unordered_map>

#include "fold.h"

namespace gk {

namespace {

namespace generated = torch::autograd::generated;
using Shape = c10::SymIntArrayRef;

struct Pass {
  const Node& node;
  size_t input;  // which of the node's edges leads to x
  Shape in, out;
};
using Rule = bool (*)(const Pass&);

int64_t rank(Shape shape) { return int64_t(shape.size()); }

bool same_shape(const Pass& p) { return p.in == p.out; }
// pointwise with broadcasting over dimensions other than the first
bool same_rows(const Pass& p) { return p.in.size() == p.out.size() && p.in[0] == p.out[0]; }
// the row-major order of the elements stays
bool reshapes(const Pass&) { return true; }

bool spares_rows(int64_t dim, int64_t dims) { return at::maybe_wrap_dim(dim, dims) != 0; }
bool spares_rows(IntArrayRef dims, int64_t n) {
  for (int64_t dim : dims)
    if (!spares_rows(dim, n)) return false;
  return !dims.empty();
}

template <class N>
bool along_another_dim(const Pass& p) {
  return spares_rows(static_cast<const N&>(p.node).dim, rank(p.in));
}
template <class N>
bool along_other_dims(const Pass& p) {
  const auto& dim = static_cast<const N&>(p.node).dim;
  if constexpr (requires { dim.list; })
    return dim.list.has_value() && spares_rows(*dim.list, rank(p.in));
  else
    return spares_rows(dim, rank(p.in));
}

const std::unordered_map<std::string, Rule>& rules() {
  using namespace generated;
  static const std::unordered_map<std::string, Rule> table = [] {
    std::unordered_map<std::string, Rule> t;
    for (const char* name :
         {"Relu", "LeakyRelu", "Rrelu", "RreluWithNoise", "Elu", "Celu", "Selu", "Silu", "Mish", "Gelu", "Softplus", "Tanh", "Sigmoid",
          "LogSigmoid", "Hardtanh", "Hardswish", "Hardsigmoid", "Threshold", "Hardshrink", "Softshrink", "Abs", "Neg", "Exp", "Exp2",
          "Expm1", "Log", "Log1P", "Sqrt", "Rsqrt", "Reciprocal", "Sin", "Cos", "Tan", "Atan", "Asinh", "Erf", "NativeDropout"})
      t[std::string(name) + "Backward0"] = same_shape;
    for (const char* name : {"ClampBackward0", "ClampBackward1", "ClampMinBackward0", "ClampMinBackward1",
                             "ClampMaxBackward0", "ClampMaxBackward1", "RsubBackward1", "ToCopyBackward0", "CloneBackward0",
                             "AliasBackward0"})
      t[name] = same_shape;
    for (const char* name : {"AddBackward0", "SubBackward0", "RsubBackward0", "MulBackward0", "DivBackward0", "MaximumBackward0",
                             "MinimumBackward0", "WhereBackward0", "AddcmulBackward0", "AddcdivBackward0", "LerpBackward0",
                             "LerpBackward1", "MaskedFillBackward0", "ExpandBackward0", "BmmBackward0", "BaddbmmBackward0",
                             "UpsampleNearest1DBackward0", "UpsampleNearest2DBackward0", "UpsampleNearest3DBackward0",
                             "UpsampleLinear1DBackward0", "UpsampleBilinear2DBackward0", "UpsampleBicubic2DBackward0"})
      t[name] = same_rows;
    for (const char* name : {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward0",
                             "SqueezeBackward1", "SqueezeBackward2"})
      t[name] = reshapes;

    t["PowBackward0"] = [](const Pass& p) {
      return static_cast<const PowBackward0&>(p.node).exponent.toComplexDouble() != 0.0 && same_shape(p);
    };
    t["TransposeBackward0"] = [](const Pass& p) {
      const auto& node = static_cast<const TransposeBackward0&>(p.node);
      return spares_rows(node.dim0, rank(p.in)) && spares_rows(node.dim1, rank(p.in));
    };
    t["PermuteBackward0"] = [](const Pass& p) {
      const auto& dims = static_cast<const PermuteBackward0&>(p.node).dims;
      return at::maybe_wrap_dim(dims[0], rank(p.in)) == 0;
    };
    t["FlipBackward0"] = [](const Pass& p) {
      return spares_rows(static_cast<const FlipBackward0&>(p.node).dims, rank(p.in));
    };
    t["UnfoldBackward0"] = [](const Pass& p) {
      return spares_rows(static_cast<const UnfoldBackward0&>(p.node).dimension, rank(p.in));
    };
    t["ConstantPadNdBackward0"] = [](const Pass& p) {
      return int64_t(static_cast<const ConstantPadNdBackward0&>(p.node).pad.size()) / 2 < rank(p.in);
    };
    t["StackBackward0"] = [](const Pass& p) {
      return spares_rows(static_cast<const StackBackward0&>(p.node).dim, rank(p.out));
    };
    t["PixelShuffleBackward0"] = t["PixelUnshuffleBackward0"] = [](const Pass& p) { return rank(p.in) >= 4 && same_rows(p); };
    t["SelectBackward0"] = along_another_dim<SelectBackward0>;
    t["SliceBackward0"] = along_another_dim<SliceBackward0>;
    t["SplitBackward0"] = along_another_dim<SplitBackward0>;
    t["SplitWithSizesBackward0"] = along_another_dim<SplitWithSizesBackward0>;
    t["UnbindBackward0"] = along_another_dim<UnbindBackward0>;
    t["CatBackward0"] = along_another_dim<CatBackward0>;
    t["SoftmaxBackward0"] = along_another_dim<SoftmaxBackward0>;
    t["LogSoftmaxBackward0"] = along_another_dim<LogSoftmaxBackward0>;
    t["GluBackward0"] = along_another_dim<GluBackward0>;
    t["CumsumBackward0"] = along_another_dim<CumsumBackward0>;
    t["MaxBackward0"] = along_another_dim<MaxBackward0>;
    t["MinBackward0"] = along_another_dim<MinBackward0>;
    t["SumBackward1"] = along_other_dims<SumBackward1>;
    t["MeanBackward1"] = along_other_dims<MeanBackward1>;
    t["VarBackward0"] = along_other_dims<VarBackward0>;
    t["StdBackward0"] = along_other_dims<StdBackward0>;
    t["AmaxBackward0"] = along_other_dims<AmaxBackward0>;
    t["AminBackward0"] = along_other_dims<AminBackward0>;
    t["LogsumexpBackward0"] = along_other_dims<LogsumexpBackward0>;
    t["LinalgVectorNormBackward0"] = [](const Pass& p) {
      return static_cast<const LinalgVectorNormBackward0&>(p.node).ord.toComplexDouble() != 0.0 &&
             along_other_dims<LinalgVectorNormBackward0>(p);
    };
    // (N, …) times weights: the first factor has the rows
    t["MmBackward0"] = t["MvBackward0"] = [](const Pass& p) { return p.input == 0 && p.in[0] == p.out[0]; };
    t["AddmmBackward0"] = [](const Pass& p) { return p.input == 1 && p.in[0] == p.out[0]; };
    t["NativeLayerNormBackward0"] = [](const Pass& p) {
      const auto& normalized = static_cast<const NativeLayerNormBackward0&>(p.node).normalized_shape;
      return p.input == 0 && normalized.size() < p.in.size();
    };
    t["NativeGroupNormBackward0"] = [](const Pass& p) { return p.input == 0 && same_shape(p); };
    t["NativeBatchNormBackward0"] = [](const Pass& p) {
      return p.input == 0 && !static_cast<const NativeBatchNormBackward0&>(p.node).training;
    };
    return t;
  }();
  return table;
}

std::mutex declared_mutex;
std::set<std::string> declared;

Shape shape_of(const Edge& edge) { return edge.function->input_metadata(edge.input_nr).shape_as_dim_vector(); }

// Why the fold cannot pass this node on its edge `input`, or nothing.
std::string obstacle(Node& node, size_t input) {
  if (has_hooks(node)) return "has a hook";
  const Pass pass{node, input, shape_of(node.next_edge(input)), node.input_metadata(0).shape_as_dim_vector()};
  const auto mixes = "relates samples to each other, or may";
  if (const auto* known = dynamic_cast<const KnowsRows*>(&node))
    return known->keeps_rows(input, pass.in, pass.out) ? "" : mixes;
  const auto name = node.name();
  if (const auto rule = rules().find(name); rule != rules().end()) return rule->second(pass) ? "" : mixes;
  const std::lock_guard lock(declared_mutex);
  if (declared.count(name)) return same_rows(pass) ? "" : mixes;
  return "is not known";
}

// visit(node, leads_to_x) for every node between score and x, the ones closer to x first; leads_to_x tells which edges do.
template <class Visit>
void for_each_between(const Tensor& score, const Tensor& x, const Visit& visit) {
  Node* const input = torch::autograd::impl::gradient_edge(x).function.get();
  Node* const output = score.grad_fn().get();

  // depth first without recursion: a node is finished when it is known whether it leads to x
  std::unordered_map<Node*, bool> leads;
  const auto leads_to_x = [&](const Edge& edge) { return leads[edge.function.get()]; };
  std::vector<std::pair<NodePtr, size_t>> stack;
  leads[input] = true;
  if (output != input) stack.emplace_back(score.grad_fn(), 0);
  leads.emplace(output, false);
  while (!stack.empty()) {
    auto& [node, next] = stack.back();
    if (next < node->num_outputs()) {
      const Edge& edge = node->next_edge(next++);
      if (edge.is_valid() && leads.emplace(edge.function.get(), false).second) stack.emplace_back(edge.function, 0);
      continue;
    }
    const NodePtr done = node;
    stack.pop_back();
    for (size_t i = 0; i < done->num_outputs(); ++i)
      if (const Edge& edge = done->next_edge(i); edge.is_valid() && leads_to_x(edge)) leads[done.get()] = true;
    if (leads[done.get()]) visit(done, leads_to_x);
  }
}

bool holds_samples(Shape shape, const c10::SymInt& samples) { return !shape.empty() && shape[0] % samples == 0; }

}  // namespace

void declare_keeps_rows(const std::string& node_name) {
  const std::lock_guard lock(declared_mutex);
  declared.insert(node_name);
}

Critic examine(const Tensor& score, const Tensor& x) {
  Critic critic;
  const auto samples = x.sym_size(0);
  for_each_between(score, x, [&](const NodePtr& node, const auto& leads_to_x) {
    Step step{node, {}, {}};
    for (size_t i = 0; i < node->num_outputs(); ++i) {
      const Edge& edge = node->next_edge(i);
      if (!edge.is_valid()) continue;
      if (!leads_to_x(edge)) {
        step.parameters.push_back(i);
        continue;
      }
      if (!step.why_not.empty()) continue;
      step.why_not = holds_samples(shape_of(edge), samples) ? obstacle(*node, i) : "does not keep samples along the first dimension";
    }
    critic.folds = critic.folds && step.why_not.empty();
    critic.steps.push_back(std::move(step));
  });
  if (score.dim() == 0 || score.sym_numel() != samples || score.sym_size(0) != samples) {
    critic.why_not = "the score is not one number per sample";
    critic.folds = false;
  }
  return critic;
}

void cut_off(const Tensor& score, const Tensor& x) {
  const NodePtr input = torch::autograd::impl::gradient_edge(x).function;
  if (has_hooks(*input)) return;  // the critic listens
  for_each_between(score, x, [&](const NodePtr& node, const auto&) {
    for (Edge& edge : node->next_edges())
      if (edge.function == input) edge = Edge();
  });
}

bool compiled_between(const Tensor& score, const Tensor& x) {
  bool compiled = false;
  for_each_between(score, x, [&](const NodePtr& node, const auto&) {
    const Node& n = *node;
    const bool of_python = std::strstr(typeid(n).name(), "PyNode");  // a type that libtorch_python keeps to itself
    compiled = compiled || (of_python && node->name().find("CompiledFunction") != std::string::npos);
  });
  return compiled;
}

}  // namespace gk
