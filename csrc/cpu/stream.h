// Results that outgrow the last-level cache, written around it: a line that is written as a whole is then not read from memory
// first, which of a copy saves a third of its traffic. Whoever reads such a result finds its beginning in no cache either way.
#pragma once

#include "../common.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace gankernels {

// About what a core reaches of a server's last-level cache. A constant, since sysconf gives the sum over all of an EPYC's.
constexpr int64_t kLargestKept = 24 << 20;

inline bool outgrows_cache(const Tensor& out) { return out.numel() * int64_t(out.element_size()) > kLargestKept; }

// to[i] = from[i], around the cache; ordered before what other threads do only by `finish_streams`.
template <class T>
void stream(const T* from, T* to, int64_t n) {
#if defined(__x86_64__)
  constexpr int64_t kStep = 16 / sizeof(T);
  int64_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(to + i) % 16; ++i) to[i] = from[i];
  for (; i + kStep <= n; i += kStep)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  for (; i < n; ++i) to[i] = from[i];
#else
  std::copy_n(from, n, to);
#endif
}

inline void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace gankernels
