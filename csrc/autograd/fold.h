// What a node of a critic's graph must provide so that loss and penalty can share one backward (derivation: docs/regularised-loss.md).
#pragma once

#include <string>

#include "nodes.h"

namespace gk {

// Shared by the node that receives the gradients of loss and penalty and the nodes that make the weights' gradients after it.
struct Fold : c10::intrusive_ptr_target {
  Tensor slopes;  // l'_i = d loss / d score_i in the backward pass under way; undefined where the loss takes no part

  // l' of the sample that each row of t belongs to, in t's dtype and ready to be multiplied with it
  Tensor rows(const Tensor& t) const {
    auto shape = at::SymDimVector(t.dim(), 1);
    shape[0] = t.sym_size(0);
    const auto of_rows = slopes.to(t.scalar_type()).unsqueeze(1).expand_symint({slopes.sym_size(0), shape[0] / slopes.sym_size(0)});
    return of_rows.reshape_symint(shape);
  }
};
using FoldPtr = c10::intrusive_ptr<Fold>;

// A forward node that knows whether it keeps samples apart: whether its gradient maps rows (dimension 0) to the same rows only.
struct KnowsRows {
  virtual bool keeps_rows(size_t input, c10::SymIntArrayRef in, c10::SymIntArrayRef out) const = 0;
  virtual ~KnowsRows() = default;
};

// A forward node whose parameters' gradients are made in the second backward, from the tangent: while `fold` is set it hands it to
// the node that it makes in the first backward, which adds l' times the activation to the tangent.
struct FoldsWeights {
  FoldPtr fold;
  virtual ~FoldsWeights() = default;
};

// Declares that stock or registered nodes of this name keep rows: from an input with as many dimensions and rows as the output. What has
// another shape, a bias say, is trusted only where it does not depend on the critic's input.
void declare_keeps_rows(const std::string& node_name);

struct Step {
  NodePtr node;
  std::string why_not;             // empty when the fold knows the node
  std::vector<size_t> parameters;  // edges out of x's reach that need a gradient
};

// The nodes between score and x, and whether loss and penalty can share one backward.
struct Critic {
  std::vector<Step> steps;
  std::string why_not;  // the score's part in it
  bool folds = true;
};
Critic examine(const Tensor& score, const Tensor& x);

// Ends the graph between score and x before x, a leaf that nobody else holds: once its gradient was taken, what further backward passes would
// compute of it is computed for nobody. Stock's layers too then spare the pass.
void cut_off(const Tensor& score, const Tensor& x);

// Whether a torch.compile'd region stands between x and the score.
bool compiled_between(const Tensor& score, const Tensor& x);

}  // namespace gk
