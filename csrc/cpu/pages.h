// Fresh large outputs. Their first touch costs a page fault per 4 KiB, which can outweigh the work itself.
#pragma once

#include "../common.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gankernels {

// Beyond this, glibc takes memory from the system and gives it back at every call.
constexpr int64_t kAlwaysMapped = 32 << 20;

// A tensor that nobody has written to, of more than `beyond` bytes, on huge pages: one of 2 MiB takes one fault where 4 KiB pages
// take 512. Only a hint: where huge pages are off, nothing changes.
inline Tensor on_huge_pages(Tensor out, int64_t beyond = kAlwaysMapped) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = 2 << 20;
  const int64_t size = out.numel() * int64_t(out.element_size());
  if (size <= beyond) return out;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = (begin + size) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return out;
}

}  // namespace gankernels
