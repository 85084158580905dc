// Fresh large outputs. Their first touch costs a page fault per 4 KiB, which can outweigh the work itself.
#pragma once

#include "../common.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gankernels {

// A page of 2 MiB takes one fault where 4 KiB pages take 512. Only a hint: where huge pages are off, nothing changes.
inline Tensor empty_like_on_huge_pages(const Tensor& like) {
  Tensor out = torch::stable::empty_like(like);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + out.numel() * out.element_size()) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return out;
}

}  // namespace gankernels
