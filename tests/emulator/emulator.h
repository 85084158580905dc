// Runs CUDA kernels on the host. csrc/cuda/device.h includes this file in place of the CUDA runtime when
// GANKERNELS_EMULATE is defined.
//
// The threads of a block are fibers of one operating-system thread, resumed in a chosen order; blocks run one after
// another. A fiber runs until it exits or waits (a barrier, a warp operation). What this finds, besides wrong values:
//
//   * barriers and warp operations that some of their threads never reach, with both places named;
//   * reads of shared memory nobody wrote: it holds NaN bytes when a block starts;
//   * missing barriers: neighbours run wholly before or after each other, so a test that runs a kernel in every order
//     of `Order` sees values that depend on it;
//   * with AddressSanitizer and -fsanitize=alignment, accesses outside a buffer and misaligned vector accesses.
//
// What it cannot find: races between blocks, and anything about time.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // one block at a time: a static is what a block shares
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// ---------------------------------------------------------------------------------------------------- vector types

#define GANKERNELS_EMULATOR_VECTOR(type, name, align2, align4)                \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

GANKERNELS_EMULATOR_VECTOR(char, char, 2, 4)
GANKERNELS_EMULATOR_VECTOR(unsigned char, uchar, 2, 4)
GANKERNELS_EMULATOR_VECTOR(short, short, 4, 8)
GANKERNELS_EMULATOR_VECTOR(unsigned short, ushort, 4, 8)
GANKERNELS_EMULATOR_VECTOR(int, int, 8, 16)
GANKERNELS_EMULATOR_VECTOR(unsigned int, uint, 8, 16)
GANKERNELS_EMULATOR_VECTOR(long long, longlong, 16, 16)
GANKERNELS_EMULATOR_VECTOR(unsigned long long, ulonglong, 16, 16)
GANKERNELS_EMULATOR_VECTOR(float, float, 8, 16)
GANKERNELS_EMULATOR_VECTOR(double, double, 16, 16)

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

// ------------------------------------------------------------------------------------------------- 16-bit floats

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {  // round to nearest, ties to even
    const uint32_t word = std::bit_cast<uint32_t>(value);
    bits = std::isnan(value) ? 0x7FFF : static_cast<uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
  }
  explicit __nv_bfloat16(double value) : __nv_bfloat16(static_cast<float>(value)) {}
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct __half {
  _Float16 value;
  __half() = default;
  __half(float value) : value(static_cast<_Float16>(value)) {}
  explicit __half(double value) : value(static_cast<_Float16>(value)) {}
  operator float() const { return static_cast<float>(value); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {value.x, value.y}; }
inline float2 __half22float2(__half2 value) { return {value.x, value.y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return {value.x, value.y}; }
inline __half2 __float22half2_rn(float2 value) { return {value.x, value.y}; }

// ------------------------------------------------------------------------------------------------------ built-ins

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned int __float_as_uint(float x) { return std::bit_cast<unsigned int>(x); }
inline float __uint_as_float(unsigned int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned int x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned int>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned int>(x)) + 1; }
inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (static_cast<uint64_t>(a) * b) >> 32; }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

template <typename T, typename F>
T emulator_atomic(T* address, F update) {
  const T old = *address;
  *address = update(old);
  return old;
}
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return old | value; });
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return old & value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return emulator_atomic(address, [=](T old) { return old == compare ? value : old; });
}
inline unsigned int atomicInc(unsigned int* address, unsigned int limit) {
  return emulator_atomic(address, [=](unsigned int old) { return old >= limit ? 0 : old + 1; });
}

// ------------------------------------------------------------------------------------------------------ scheduler

namespace emulator {

enum class Order { ascending, descending, shuffled };

// Variables a kernel declares __shared__ without `extern`; found in the symbol table of the built module (harness.py).
struct SharedVariable {
  char* address;
  size_t bytes;
};

struct Site {
  const char* operation;
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(operation, other.operation) == 0 && std::strcmp(file, other.file) == 0;
  }
  std::string text() const { return std::string(operation) + " (" + file + ":" + std::to_string(line) + ")"; }
};

enum class State { ready, at_barrier, at_warp_operation, exited };

using Combine = uint64_t (*)(const uint64_t* values, uint32_t present, int source);

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  uint3 index;
  State state = State::exited;
  Site site;
  // a warp operation: what this lane brings, whom it wants to hear, and what it gets
  uint32_t mask = 0;
  uint64_t value = 0;
  int source = 0;
  Combine combine = nullptr;
};

inline constexpr size_t stack_bytes = 128 * 1024;
inline constexpr size_t guard_bytes = 4096;

struct Machine {
  Order order = Order::ascending;
  bool only_last_block = false;  // the end of a tensor too large to be run whole
  std::vector<SharedVariable> shared_variables;
  char* dynamic_shared = nullptr;
  size_t dynamic_shared_bytes = 0;

  std::vector<Fiber> fibers;
  int threads = 0;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::function<void()> body;
  std::string failure;
};

inline Machine machine;

inline void switch_to_scheduler() {
  Fiber* self = machine.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->fake_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
#endif
  swapcontext(&self->context, &machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
}

inline void resume(Fiber& fiber) {
  machine.current = &fiber;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack + guard_bytes, stack_bytes);
#endif
  swapcontext(&machine.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

// A fiber outlives its block: it runs the same thread of every block of the grid.
inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
  for (;;) {
    try {
      machine.body();
    } catch (const std::exception& error) {
      machine.failure = error.what();
    }
    machine.current->state = State::exited;
    switch_to_scheduler();
  }
}

inline void wait(State state, Site site) {
  machine.current->state = state;
  machine.current->site = site;
  switch_to_scheduler();
}

inline std::string name_of(const Fiber& fiber) {
  const auto triple = [](auto v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
  };
  return "thread " + triple(fiber.index) + " of block " + triple(blockIdx);
}

inline std::string whereabouts(const Fiber& fiber) {
  return name_of(fiber) + (fiber.state == State::exited ? " has exited" : " waits at " + fiber.site.text());
}

// The lanes of `mask` that exist and have not exited; a partial last warp has fewer than 32.
inline uint32_t live_lanes(int warp, uint32_t mask) {
  uint32_t live = 0;
  for (int lane = 0; lane < warpSize && warp * warpSize + lane < machine.threads; ++lane) {
    if ((mask >> lane & 1) && machine.fibers[warp * warpSize + lane].state != State::exited) live |= 1u << lane;
  }
  return live;
}

// Lets the lanes go that all wait at one warp operation; false when some of them are not there yet.
inline bool release_lanes(int warp, const Fiber& leader) {
  Fiber* lanes = &machine.fibers[warp * warpSize];
  const uint32_t live = live_lanes(warp, leader.mask);
  uint64_t values[warpSize];
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(live >> lane & 1)) continue;
    const Fiber& other = lanes[lane];
    if (other.state != State::at_warp_operation || other.mask != leader.mask || !(other.site == leader.site))
      return false;
    values[lane] = other.value;
  }
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(live >> lane & 1)) continue;
    lanes[lane].value = lanes[lane].combine(values, live, lanes[lane].source);
    lanes[lane].state = State::ready;
  }
  return true;
}

inline bool release_warps() {
  bool released = false;
  for (int thread = 0; thread < machine.threads; ++thread) {
    const Fiber& fiber = machine.fibers[thread];
    if (fiber.state == State::at_warp_operation) released |= release_lanes(thread / warpSize, fiber);
  }
  return released;
}

inline bool release_barrier() {
  for (int thread = 0; thread < machine.threads; ++thread) {
    const Fiber& fiber = machine.fibers[thread];
    if (fiber.state != State::at_barrier || !(fiber.site == machine.fibers[0].site)) return false;
  }
  for (int thread = 0; thread < machine.threads; ++thread) machine.fibers[thread].state = State::ready;
  return true;
}

// Nobody can go on: name one thread that waits and one of those it waits for.
inline std::string divergence() {
  for (int thread = 0; thread < machine.threads; ++thread) {
    const Fiber& fiber = machine.fibers[thread];
    if (fiber.state == State::exited) continue;
    const bool warp_operation = fiber.state == State::at_warp_operation;
    const int first = warp_operation ? thread / warpSize * warpSize : 0;
    const int last = warp_operation ? std::min(first + warpSize, machine.threads) : machine.threads;
    for (int other = first; other < last; ++other) {
      const Fiber& absent = machine.fibers[other];
      if (warp_operation && (!(fiber.mask >> (other - first) & 1) || absent.state == State::exited)) continue;
      if (absent.state == fiber.state && absent.site == fiber.site && absent.mask == fiber.mask) continue;
      return "divergence: " + whereabouts(fiber) + " and " + whereabouts(absent) + ".";
    }
  }
  return "divergence: no thread of the block can go on.";
}

inline void run_block(std::mt19937& generator) {
  for (const SharedVariable& variable : machine.shared_variables) std::memset(variable.address, 0xFF, variable.bytes);
  if (machine.dynamic_shared_bytes > 0) std::memset(machine.dynamic_shared, 0xFF, machine.dynamic_shared_bytes);
  std::vector<int> sequence(machine.threads);
  for (int thread = 0; thread < machine.threads; ++thread) {
    sequence[thread] = machine.order == Order::descending ? machine.threads - 1 - thread : thread;
    machine.fibers[thread].state = State::ready;
  }
  for (;;) {
    if (machine.order == Order::shuffled) std::shuffle(sequence.begin(), sequence.end(), generator);
    bool alive = false;
    for (const int thread : sequence) {
      Fiber& fiber = machine.fibers[thread];
      if (fiber.state == State::ready) resume(fiber);
      if (!machine.failure.empty()) throw std::runtime_error(machine.failure + " (" + name_of(fiber) + ")");
      alive |= fiber.state != State::exited;
    }
    if (!alive) return;
    if (!release_warps() && !release_barrier()) throw std::runtime_error(divergence());
  }
}

inline void make_fibers(dim3 block) {
  machine.threads = static_cast<int>(block.x * block.y * block.z);
  if (machine.threads < 1 || machine.threads > 1024) {
    throw std::runtime_error("a block has 1 to 1024 threads, got " + std::to_string(machine.threads) + ".");
  }
  if (machine.fibers.empty()) machine.fibers.resize(1024);  // once: a context may not move
  for (int thread = 0; thread < machine.threads; ++thread) {
    Fiber& fiber = machine.fibers[thread];
    if (fiber.stack == nullptr) {
      fiber.stack = static_cast<char*>(
          mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (fiber.stack == MAP_FAILED) throw std::runtime_error("no memory for the stacks of a block.");
      mprotect(fiber.stack, guard_bytes, PROT_NONE);
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack + guard_bytes, stack_bytes);  // a launch that failed left frames behind
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack + guard_bytes;
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    const unsigned int t = static_cast<unsigned int>(thread);
    fiber.index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
  }
}

// kernel<<<grid, block, dynamic_shared_bytes>>>(arguments...)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
            Arguments&&... arguments) {
  make_fibers(block);
  // exactly as many bytes as were asked for, so that AddressSanitizer sees the first one too many
  std::vector<char> dynamic_shared(dynamic_shared_bytes);
  machine.dynamic_shared = dynamic_shared.data();
  machine.dynamic_shared_bytes = dynamic_shared_bytes;
  machine.failure.clear();
  machine.body = [&] { kernel(arguments...); };
  gridDim = grid;
  blockDim = block;
  std::mt19937 generator(0);
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  for (uint64_t i = machine.only_last_block && blocks ? blocks - 1 : 0; i < blocks; ++i) {
    const uint64_t b = machine.order == Order::descending && !machine.only_last_block ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned int>(b % grid.x), static_cast<unsigned int>(b / grid.x % grid.y),
                static_cast<unsigned int>(b / grid.x / grid.y)};
    run_block(generator);
  }
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline uint64_t meet(uint32_t mask, uint64_t value, int source, Combine combine, Site site) {
  Fiber& self = *machine.current;
  if (!(mask >> ((&self - machine.fibers.data()) % warpSize) & 1)) {
    throw std::runtime_error("a lane calls " + site.text() + " with a mask that leaves it out");
  }
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.combine = combine;
  wait(State::at_warp_operation, site);
  return self.value;
}

// The value of a lane that takes no part is undefined on the device; here it is NaN bytes.
inline uint64_t read_lane(const uint64_t* values, uint32_t present, int source) {
  return present >> source & 1 ? values[source] : ~uint64_t{0};
}

inline uint64_t read_ballot(const uint64_t* values, uint32_t present, int) {
  uint64_t ballot = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if ((present >> lane & 1) && values[lane]) ballot |= uint64_t{1} << lane;
  }
  return ballot;
}

inline int lane_id() { return static_cast<int>((machine.current - machine.fibers.data()) % warpSize); }

template <typename T>
T shuffle(uint32_t mask, T value, int source, Site site) {
  return from_bits<T>(meet(mask, to_bits(value), source, read_lane, site));
}

}  // namespace emulator

// The default arguments name the place of the call.
#define GANKERNELS_EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GANKERNELS_EMULATOR_SITE) {
  emulator::wait(emulator::State::at_barrier, {"__syncthreads", file, line});
}

inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu, GANKERNELS_EMULATOR_SITE) {
  emulator::meet(mask, 0, 0, emulator::read_ballot, {"__syncwarp", file, line});
}

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, int width = warpSize, GANKERNELS_EMULATOR_SITE) {
  const int first = emulator::lane_id() / width * width;
  return emulator::shuffle(mask, value, first + (source & (width - 1)), {"__shfl_sync", file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = warpSize, GANKERNELS_EMULATOR_SITE) {
  const int lane = emulator::lane_id(), source = lane ^ lane_mask;
  const bool inside = source / width <= lane / width;
  return emulator::shuffle(mask, value, inside ? source : lane, {"__shfl_xor_sync", file, line});
}

template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize, GANKERNELS_EMULATOR_SITE) {
  const int lane = emulator::lane_id(), source = lane + static_cast<int>(delta);
  const bool inside = source / width == lane / width;
  return emulator::shuffle(mask, value, inside ? source : lane, {"__shfl_down_sync", file, line});
}

template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize, GANKERNELS_EMULATOR_SITE) {
  const int lane = emulator::lane_id(), source = lane - static_cast<int>(delta);
  const bool inside = source >= lane / width * width;
  return emulator::shuffle(mask, value, inside ? source : lane, {"__shfl_up_sync", file, line});
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, GANKERNELS_EMULATOR_SITE) {
  return static_cast<unsigned int>(
      emulator::meet(mask, predicate != 0, 0, emulator::read_ballot, {"__ballot_sync", file, line}));
}

inline int __any_sync(unsigned int mask, int predicate, GANKERNELS_EMULATOR_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned int mask, int predicate, GANKERNELS_EMULATOR_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
