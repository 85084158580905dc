// Lists of tensors updated in one call: checks, flat memory, and one parallel pass over all of them.
#pragma once

#include <array>
#include <deque>
#include <optional>

#include "common.h"

namespace gankernels {

using TensorList = std::vector<Tensor>;

inline const char* dtype_text(const Tensor& t) { return torch::headeronly::toString(t.scalar_type()); }

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// What the tensors to be updated must be. Values are not inspected.
inline void check_weights(const char* op, const TensorList& weights) {
  const bool on_cpu = weights.empty() || weights[0].is_cpu();
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    GK_CHECK(is_floating(w.scalar_type()), op, ": weights[", i, "] must be float64, float32, bfloat16 or float16, got ",
             dtype_text(w));
    GK_CHECK(w.is_cpu() == on_cpu && (on_cpu || same_device(w, weights[0])), op,
             ": weights must be on one device, and weights[", i, "] is on another than weights[0]");
    if (w.is_contiguous()) continue;
    const auto sizes = w.sizes(), strides = w.strides();
    for (size_t d = 0; d < sizes.size(); ++d) {
      GK_CHECK(strides[d] != 0 || sizes[d] <= 1, op, ": weights[", i,
               "] must have its own memory for every element, got an expanded tensor of shape ", shape_text(sizes));
    }
  }
}

// Element i of one is element i of the other in memory; strides of dimensions of size 1 do not matter.
inline bool same_memory_order(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), x = a.strides(), y = b.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && x[d] != y[d]) return false;
  }
  return true;
}

// Tensors as flat arrays. What is not dense, or not in the memory order of its weight, takes part as a copy; write_back
// returns the copies of what was updated.
class FlatMemory {
 public:
  const Tensor& weight(const Tensor& t) {
    if (t.is_contiguous() || is_dense(t)) return t;
    return keep(contiguous(t), &t);
  }

  const Tensor& beside(const Tensor& weight, const Tensor& t, bool updated) {
    if (same_memory_order(weight, t)) return t;
    Tensor copy = torch::stable::empty_like(weight);
    return keep(torch::stable::copy_(copy, t), updated ? &t : nullptr);
  }

  void write_back() {
    for (Copy& copy : copies_) {
      if (copy.original) torch::stable::copy_(*copy.original, copy.memory);
    }
  }

 private:
  struct Copy {
    Tensor memory;
    std::optional<Tensor> original;
  };

  const Tensor& keep(const Tensor& memory, const Tensor* original) {
    return copies_.emplace_back(Copy{memory, original ? std::optional<Tensor>(*original) : std::nullopt}).memory;
  }

  std::deque<Copy> copies_;
};

// body(tensor, begin, end) for every chunk of every tensor. Threads get equal shares of the elements of all tensors
// together, and whole chunks: two hundred tiny tensors are one pass, a large one is split, and results do not depend on
// the split. `grain` elements are worth a thread. A thread has a body of its own, which may keep something from chunk to chunk.
template <class Body>
void for_each_tensor_chunk(const std::vector<int64_t>& numels, int64_t grain, const Body& body) {
  std::vector<int64_t> starts(numels.size() + 1, 0);
  for (size_t t = 0; t < numels.size(); ++t) starts[t + 1] = starts[t] + numels[t];
  if (starts.back() == 0) return;
  torch::stable::parallel_for(0, starts.back(), grain, [&](int64_t first, int64_t last) {
    Body own = body;
    // chunks that start within [first, last)
    size_t t = std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1;
    for (; t < numels.size() && starts[t] < last; ++t) {
      int64_t begin = first <= starts[t] ? 0 : chunks_of(first - starts[t]) * kChunk;
      for (; begin < numels[t] && starts[t] + begin < last; begin += kChunk) {
        own(t, begin, std::min(begin + kChunk, numels[t]));
      }
    }
  });
}

}  // namespace gankernels
