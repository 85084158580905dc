// w <- clip(w, -c, c) for a list of tensors. A block is written only when something in it, or in the one before, is out of range, so
// that with all in range the pass is one read of the bytes.
//
// Works on the bits: of two floats of one sign the larger has the larger bits, and NaNs are larger than infinity. Hence
// "c < |w| <= inf" is one unsigned comparison, NaN stays, and bfloat16 and float16 need no conversion.
#include <bit>
#include <cmath>
#include <limits>

#include "../multi_tensor.h"
#include "vec.h"

namespace gankernels {
namespace {

constexpr int64_t kGrain = 1 << 19;  // some 50 us at the rate of one core

template <class U>
GK_MULTIVERSION void clip_chunk(U* bits, int64_t n, U bound, U infinity) {
  constexpr int64_t kBlock = 1024;
  constexpr U kSign = U(U(1) << (8 * sizeof(U) - 1)), kMagnitude = U(~kSign);
  const U lowest = U(bound + 1), count = U(infinity - bound);  // magnitudes out of range: lowest, ..., infinity
  bool writing = false;  // a block that follows one with something out of range is written without looking first
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    U outside = 0;
    if (!writing) {
      for (int64_t i = first; i < last; ++i) outside |= U(U(U(bits[i] & kMagnitude) - lowest) < count);
      if (!outside) continue;
    }
    outside = 0;
    for (int64_t i = first; i < last; ++i) {
      const U magnitude = U(bits[i] & kMagnitude), out = U(U(magnitude - lowest) < count);
      outside |= out;
      bits[i] = U(bits[i] & kSign) | (out ? bound : magnitude);
    }
    writing = outside != 0;
  }
}

template <class T>
void clip_as_bits(void* weights, int64_t begin, int64_t end, double c) {
  using U = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  using A = accumulate_t<T>;
  const U bound = std::bit_cast<U>(T(A(c))), infinity = std::bit_cast<U>(T(std::numeric_limits<A>::infinity()));
  clip_chunk<U>(static_cast<U*>(weights) + begin, end - begin, bound, infinity);
}

struct Flat {
  void* data;
  int64_t numel;
  ScalarType dtype;
};

void clip_flat(const std::vector<Flat>& weights, double c) {
  std::vector<int64_t> numels(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) numels[i] = weights[i].numel;
  for_each_tensor_chunk(numels, kGrain, [&](size_t i, int64_t begin, int64_t end) {
    dispatch_floating("clip_weights_", weights[i].dtype,
                      [&]<class T>() { clip_as_bits<T>(weights[i].data, begin, end, c); });
  });
}

void clip_weights_(const TensorList& weights, double c) {
  check_weights("clip_weights_", weights);
  FlatMemory memory;
  std::vector<Flat> flat(weights.size());
  for (size_t i = 0; i < weights.size(); ++i)
    flat[i] = {memory.weight(weights[i]).mutable_data_ptr(), weights[i].numel(), weights[i].scalar_type()};
  clip_flat(flat, c);
  memory.write_back();
}

// The list as the dispatcher hands it over. With hundreds of small weights half the time would go into wrapping each in a
// torch::stable::Tensor, so the usual case, contiguous on the CPU, is read from the bare handles.
class WeightHandles {
 public:
  explicit WeightHandles(StableListHandle list) : list_(list) {
    size_t size = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_size(list_, &size));
    handles_.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue element;
      STABLE_TORCH_ERROR_CODE_CHECK(torch_list_get_item(list_, i, &element));
      handles_.push_back(torch::stable::detail::to<AtenTensorHandle>(element));
    }
  }
  WeightHandles(const WeightHandles&) = delete;
  ~WeightHandles() {
    for (const AtenTensorHandle handle : handles_) aoti_torch_delete_tensor_object(handle);
    torch_delete_list(list_);
  }

  // Empty when a tensor is not contiguous, not on the CPU or not floating.
  std::vector<Flat> flat() const {
    static const int32_t cpu = aoti_torch_device_type_cpu();
    std::vector<Flat> flat(handles_.size());
    for (size_t i = 0; i < handles_.size(); ++i) {
      int32_t device = 0, dtype = 0;
      bool is_contiguous = false;
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handles_[i], &device));
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handles_[i], &dtype));
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handles_[i], &is_contiguous));
      flat[i].dtype = torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype));
      if (device != cpu || !is_contiguous || !is_floating(flat[i].dtype)) return {};
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handles_[i], &flat[i].numel));
      STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handles_[i], &flat[i].data));
    }
    return flat;
  }

  TensorList release() {
    TensorList tensors;
    tensors.reserve(handles_.size());
    for (const AtenTensorHandle handle : handles_) tensors.emplace_back(handle);
    handles_.clear();
    return tensors;
  }

 private:
  StableListHandle list_;
  std::vector<AtenTensorHandle> handles_;
};

void clip_weights_boxed(StableIValue* stack, uint64_t, uint64_t) {
  WeightHandles weights(torch::stable::detail::to<StableListHandle>(stack[0]));
  const double c = torch::stable::detail::to<double>(stack[1]);
  GK_CHECK(std::isfinite(c) && c > 0, "clip_weights_: c must be a finite number > 0, got ", c);
  const std::vector<Flat> flat = weights.flat();
  flat.empty() ? clip_weights_(weights.release(), c) : clip_flat(flat, c);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) { m.impl("clip_weights_", &clip_weights_boxed); }

}  // namespace gankernels
