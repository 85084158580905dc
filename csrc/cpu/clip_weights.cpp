// w <- clip(w, -c, c) for a list of tensors. A block is written only when something in it, or in a few before it, is out of range, so
// that with all in range the pass is one read of the bytes.
//
// Part of the extension that is tied to one PyTorch: through the stable ABI each tensor of a list costs 0.2 us, which for the small
// weights of a critic is more than clipping them.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../multi_tensor.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kGrain = 1 << 19;  // some 50 us at the rate of one core
constexpr int64_t kBlock = 1024;
constexpr int kUnseen = 8;  // blocks written without a look, once one had something out of range

// float16 and bfloat16 are worked on as their bits: of two magnitudes the larger has the larger bits, and NaNs are larger than
// infinity. Hence "bound < |w| <= infinity" is one unsigned comparison, and NaN stays.
template <class W>
struct Bounds {
  W bound, infinity;
  static constexpr W kSign = W(W(1) << (8 * sizeof(W) - 1));
  bool outside(W w) const { return W(W(w & W(~kSign)) - W(bound + 1)) < W(infinity - bound); }
  W clipped(W w) const { return W(w & kSign) | (outside(w) ? bound : W(w & W(~kSign))); }
};

template <class W>
  requires std::is_floating_point_v<W>
struct Bounds<W> {
  W bound;
  bool outside(W w) const { return std::abs(w) > bound; }
  W clipped(W w) const { return w > bound ? bound : w < -bound ? -bound : w; }
};

// `unseen` counts down the blocks to be written without a look.
template <class W>
GK_MULTIVERSION void clip_chunk(W* w, int64_t n, Bounds<W> bounds, int& unseen) {
  using Flag = std::conditional_t<sizeof(W) == 8, uint64_t, std::conditional_t<sizeof(W) == 4, uint32_t, uint16_t>>;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    if (unseen == 0) {
      Flag outside = 0;
      for (int64_t i = first; i < last; ++i) outside |= Flag(bounds.outside(w[i]));
      if (!outside) continue;
      unseen = kUnseen;
    }
    --unseen;
    for (int64_t i = first; i < last; ++i) w[i] = bounds.clipped(w[i]);
  }
}

struct Flat {
  void* data;
  int64_t numel;
  at::ScalarType dtype;
};

template <class T>
void clip(const Flat& weights, int64_t begin, int64_t end, double c, int& unseen) {
  using A = accumulate_t<T>;
  const T bound = T(A(c));
  if constexpr (std::is_floating_point_v<T>) {
    clip_chunk<T>(static_cast<T*>(weights.data) + begin, end - begin, {bound}, unseen);
  } else {
    const T infinity = T(std::numeric_limits<A>::infinity());
    clip_chunk<uint16_t>(static_cast<uint16_t*>(weights.data) + begin, end - begin,
                         {std::bit_cast<uint16_t>(bound), std::bit_cast<uint16_t>(infinity)}, unseen);
  }
}

void check(const at::TensorList& weights, double c) {
  const char* op = "clip_weights_";
  GK_CHECK(std::isfinite(c) && c > 0, op, ": c must be a finite number > 0, got ", c);
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& w = weights[i];
    GK_CHECK(is_floating(w.scalar_type()), op, ": weights[", i, "] must be float64, float32, bfloat16 or float16, got ",
             c10::toString(w.scalar_type()));
    GK_CHECK(w.is_cpu(), op, ": weights must be on one device, and weights[", i, "] is on another than weights[0]");
    GK_CHECK(w.layout() == at::kStrided, op, ": weights[", i, "] must be dense");
    if (w.is_contiguous()) continue;
    for (int64_t d = 0; d < w.dim(); ++d)
      GK_CHECK(w.stride(d) != 0 || w.size(d) <= 1, op, ": weights[", i,
               "] must have its own memory for every element, got an expanded tensor of shape ", shape_text(w.sizes()));
  }
}

void clip_weights_(at::TensorList weights, double c) {
  check(weights, c);
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // of what has gaps: the weight, and its elements
  std::vector<Flat> flat;
  std::vector<int64_t> numels;
  flat.reserve(weights.size());
  numels.reserve(weights.size());
  for (const at::Tensor& w : weights) {
    const bool dense = w.is_non_overlapping_and_dense();
    if (!dense) copies.emplace_back(w, w.contiguous());
    flat.push_back({(dense ? w : copies.back().second).mutable_data_ptr(), w.numel(), w.scalar_type()});
    numels.push_back(w.numel());
  }
  for_each_tensor_chunk(numels, kGrain, [&, unseen = 0](size_t i, int64_t begin, int64_t end) mutable {
    dispatch_floating("clip_weights_", flat[i].dtype, [&]<class T>() { clip<T>(flat[i], begin, end, c, unseen); });
  });
  for (const auto& [weight, elements] : copies) weight.copy_(elements);
}

// On every device: whoever saved a weight for a backward pass shall see that it was written to.
void clip_and_count(c10::DispatchKeySet keys, at::TensorList weights, double c) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gankernels::clip_weights_", "")
                             .typed<void(at::TensorList, double)>();
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatch(keys & c10::after_ADInplaceOrView_keyset, weights, c);
  }
  for (const at::Tensor& w : weights)
    if (!w.is_inference()) w.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace gankernels

TORCH_LIBRARY_IMPL(gankernels, CPU, m) { m.impl("clip_weights_", gankernels::clip_weights_); }
TORCH_LIBRARY_IMPL(gankernels, ADInplaceOrView, m) { m.impl("clip_weights_", gankernels::clip_and_count); }
// no gradient is recorded, be it in a leaf that needs one
TORCH_LIBRARY_IMPL(gankernels, Autograd, m) { m.impl("clip_weights_", torch::CppFunction::makeFallthrough()); }
