#pragma once

#include <cstdint>
#include <vector>

namespace gankernels {

// Memory that starts with a cache line, of zeros.
template <class A>
class Lines {
 public:
  explicit Lines(int64_t size = 0) : lines_((size + kLine - 1) / kLine) {}
  A* data() { return reinterpret_cast<A*>(lines_.data()); }

  static constexpr int64_t kLine = 64 / sizeof(A);
  static int64_t whole(int64_t size) { return (size + kLine - 1) / kLine * kLine; }

 private:
  struct alignas(64) Line {
    A numbers[kLine];
  };
  std::vector<Line> lines_;
};

}  // namespace gankernels
