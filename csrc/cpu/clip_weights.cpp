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

void clip_weights_(const TensorList& weights, double c) {
  const char* op = "clip_weights_";
  GK_CHECK(std::isfinite(c) && c > 0, op, ": c must be a finite number > 0, got ", c);
  check_weights(op, weights);
  FlatMemory memory;
  std::vector<void*> data(weights.size());
  std::vector<ScalarType> dtypes(weights.size());
  std::vector<int64_t> numels(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    data[i] = memory.weight(weights[i]).mutable_data_ptr();
    numels[i] = weights[i].numel();
    dtypes[i] = weights[i].scalar_type();
  }
  for_each_tensor_chunk(numels, kGrain, [&](size_t i, int64_t begin, int64_t end) {
    dispatch_floating(op, dtypes[i], [&]<class T>() { clip_as_bits<T>(data[i], begin, end, c); });
  });
  memory.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) { m.impl("clip_weights_", TORCH_BOX(&clip_weights_)); }

}  // namespace gankernels
