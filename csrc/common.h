// What every kernel file shares: one-sentence checks, dtype dispatch, memory layouts, and work split into equal chunks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace gankernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Message parts are streamed, so a check reads: GK_CHECK(c > 0, "clip_weights_: c must be > 0, got ", c).
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "gankernels.";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}
#define GK_CHECK(condition, ...) \
  if (!(condition)) [[unlikely]] \
  ::gankernels::fail(__VA_ARGS__)

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  const auto x = a.strides(), y = b.strides();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

inline void check_same_shape(const char* op, const char* name, const Tensor& got, const char* like, const Tensor& want) {
  GK_CHECK(same_sizes(got, want), op, ": ", name, " must have the shape of ", like, ", ", shape_text(want.sizes()),
           ", got ", shape_text(got.sizes()));
  GK_CHECK(got.scalar_type() == want.scalar_type(), op, ": ", name, " must have the dtype of ", like, ", ",
           torch::headeronly::toString(want.scalar_type()), ", got ", torch::headeronly::toString(got.scalar_type()));
}

inline void check_cpu(const char* op, const char* name, const Tensor& t) {
  GK_CHECK(t.is_cpu(), op, ": ", name, " must be on the CPU, as the other arguments are, got a tensor on another device");
}

// The dtype sums and statistics are kept in, and the one they are returned in.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// _Float16 converts in hardware where c10's Half would go through integer arithmetic.
#ifdef __FLT16_MANT_DIG__
using half_t = _Float16;
#else
using half_t = torch::headeronly::Half;
#endif
using bfloat16_t = torch::headeronly::BFloat16;

// Calls body.operator()<T>() with the C++ type of a floating dtype.
template <class Body>
auto dispatch_floating(const char* op, ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::BFloat16:
      return body.template operator()<bfloat16_t>();
    case ScalarType::Half:
      return body.template operator()<half_t>();
    default:
      fail(op, ": expected a float64, float32, bfloat16 or float16 tensor, got ", torch::headeronly::toString(dtype));
  }
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Every element once, without gaps, in some order of the dimensions.
inline bool is_dense(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  std::vector<size_t> order;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != 1) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (const size_t i : order) {
    if (strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

// Each sample (index of dimension 0) is one dense block: a reduction over samples need not know the layout within.
inline bool is_samples_first(const Tensor& t) {
  const int64_t n = t.size(0);
  return t.numel() == 0 || (is_dense(t) && (n == 1 || t.stride(0) == t.numel() / n));
}

inline Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = torch::stable::new_empty(t, t.sizes());
  return torch::stable::copy_(copy, t);
}

inline Tensor samples_first(const Tensor& t) { return is_samples_first(t) ? t : as_contiguous(t); }

// The elements of t in the memory order of `like` (same shape, dense).
inline Tensor in_layout_of(const Tensor& like, const Tensor& t) {
  if (same_strides(like, t)) return t;
  Tensor copy = torch::stable::empty_like(like);
  return torch::stable::copy_(copy, t);
}

// x as it is when its samples are dense blocks of planes or of rows, else a contiguous copy.
inline Tensor planes_or_rows(const Tensor& x_) {
  if (x_.numel() == 0) return torch::stable::new_empty(x_, x_.sizes());  // its strides mean nothing
  const Tensor x = samples_first(x_);
  if (x.size(1) == 1 || x.stride(1) == 1) return x;
  return x.stride(1) == x.numel() / (x.size(0) * x.size(1)) ? x : as_contiguous(x);
}

// Work is cut into chunks of a fixed size, so that what is summed with what does not depend on the number of threads.
constexpr int64_t kChunk = 16384;

constexpr int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// body(row, begin, end) for every chunk of every one of `rows` rows of `length` elements; small work stays in this thread.
template <class Body>
void for_each_chunk(int64_t rows, int64_t length, const Body& body) {
  const int64_t per_row = chunks_of(length);
  if (rows * per_row == 0) return;
  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / std::max<int64_t>(1, std::min(length, kChunk)));
  torch::stable::parallel_for(0, rows * per_row, grain, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item % per_row * kChunk;
      body(item / per_row, begin, std::min(begin + kChunk, length));
    }
  });
}

}  // namespace gankernels
