// The CUDA kernels as Python functions over numpy arrays, run by the emulator. Arrays are float64, float32, float16
// (__half) or uint16 (__nv_bfloat16), contiguous, and are modified in place.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>

#include "clip_weights.cuh"
#include "optim.cuh"
#include "resample.cuh"
#include "spectral_norm.cuh"

namespace py = pybind11;
using namespace gankernels;
using namespace gankernels::cuda;

namespace {

template <class Body>
void dispatch(const py::array& array, const Body& body) {
  const std::string code = py::str(array.dtype().attr("str"));
  if (code == "<f4") return body.template operator()<float>();
  if (code == "<f8") return body.template operator()<double>();
  if (code == "<f2") return body.template operator()<__half>();
  if (code == "<u2") return body.template operator()<__nv_bfloat16>();
  throw std::runtime_error("expected float64, float32, float16 or uint16, got " + code);
}

using Arrays = std::vector<py::array>;

// One column per list; an empty list is a column of null pointers.
template <size_t kColumns>
std::vector<TensorEntry<static_cast<int>(kColumns)>> entries_of(const std::array<Arrays, kColumns>& columns) {
  std::vector<TensorEntry<static_cast<int>(kColumns)>> entries(columns[0].size());
  for (size_t t = 0; t < entries.size(); ++t) {
    entries[t].numel = columns[0][t].size();
    for (size_t column = 0; column < kColumns; ++column) {
      entries[t].pointers[column] = columns[column].empty() ? nullptr : const_cast<void*>(columns[column][t].data());
    }
  }
  return entries;
}

int clip_weights(const Arrays& weights, double c) {
  int launches = 0;
  dispatch(weights.at(0), [&]<class T>() {
    for_each_table<T>(entries_of<1>({weights}), [&]<int kCapacity>(const TensorTable<1, kCapacity>& table, int blocks) {
      const accumulate_t<T> bound = static_cast<accumulate_t<T>>(static_cast<T>(c));
      emulator::launch(clip_weights_kernel<T, kCapacity>, blocks, kThreads, 0, table, bound);
      ++launches;
    });
  });
  return launches;
}

DeviceScalar scalar_of(const std::optional<py::array>& array) {
  if (!array) return {nullptr, false};
  return {array->data(), array->itemsize() == 8};
}

void rmsprop(const Arrays& weights, const Arrays& grads, const Arrays& square_avgs, const Arrays& momentum_buffers,
             const Arrays& grad_avgs, const Arrays& ema, const std::optional<py::array>& lr_tensor, double lr,
             double alpha, double eps, double weight_decay, double momentum, bool maximize, double clip,
             double ema_decay) {
  const RMSpropStep<double> step{.lr = lr,
                                 .alpha = alpha,
                                 .one_minus_alpha = 1 - alpha,
                                 .eps = eps,
                                 .weight_decay = weight_decay,
                                 .momentum = momentum,
                                 .sign = maximize ? -1.0 : 1.0,
                                 .clip = clip,
                                 .ema_weight = 1 - ema_decay};
  dispatch(weights.at(0), [&]<class T>() {
    using A = accumulate_t<T>;
    const auto entries = entries_of<kRMSpropColumns>({weights, grads, square_avgs, momentum_buffers, grad_avgs, ema});
    for_each_table<T>(entries, [&]<int kCapacity>(const TensorTable<kRMSpropColumns, kCapacity>& table, int blocks) {
      emulator::launch(rmsprop_kernel<T, kCapacity>, blocks, kThreads, 0, table, step.as<A>(), scalar_of(lr_tensor));
    });
  });
}

void adam(const Arrays& weights, const Arrays& grads, const Arrays& exp_avgs, const Arrays& exp_avg_sqs,
          const Arrays& max_exp_avg_sqs, const Arrays& ema, const Arrays& steps,
          const std::optional<py::array>& lr_tensor, double lr, double beta1, double beta2, double eps,
          double weight_decay, bool decoupled_weight_decay, bool maximize, double clip, double ema_decay) {
  const AdamStep<double> step{.lr = lr,
                              .one_minus_beta1 = 1 - beta1,
                              .beta2 = beta2,
                              .one_minus_beta2 = 1 - beta2,
                              .eps = eps,
                              .weight_decay = weight_decay,
                              .sign = maximize ? -1.0 : 1.0,
                              .clip = clip,
                              .ema_weight = 1 - ema_decay,
                              .bias_correction1 = 0,
                              .bias_correction2_sqrt = 0,
                              .decoupled_weight_decay = decoupled_weight_decay};
  for_each_table<float>(entries_of<1>({steps}), [&]<int kCapacity>(const TensorTable<1, kCapacity>& table, int) {
    emulator::launch(increment_steps_kernel<kCapacity>, 1, kThreads, 0, table);
  });
  dispatch(weights.at(0), [&]<class T>() {
    using A = accumulate_t<T>;
    const auto entries = entries_of<kAdamColumns>({weights, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, ema, steps});
    for_each_table<T>(entries, [&]<int kCapacity>(const TensorTable<kAdamColumns, kCapacity>& table, int blocks) {
      emulator::launch(adam_kernel<T, kCapacity>, blocks, kThreads, 0, table, step.as<A>(), scalar_of(lr_tensor),
                       A(std::log(beta1)), A(std::log(beta2)));
    });
  });
}

// (rows, slices, inner, leading) of a layer; see SpectralLayer.
using Shapes = std::vector<std::array<int, 4>>;

struct EmulatedLaunch {
  int& launches;
  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, dim3 grid, int threads, const Arguments&... arguments) const {
    emulator::launch(kernel, grid, threads, 0, arguments...);
    ++launches;
  }
};

template <class A>
A* values(const py::array& array) {
  return static_cast<A*>(const_cast<void*>(array.data()));
}

int spectral_norm_power_iteration(const Arrays& weights, const Arrays& u, const Arrays& v, const Shapes& shapes, py::array uv,
                                  py::array sigma, int64_t iterations, double eps) {
  int launches = 0;
  dispatch(weights.at(0), [&]<class T>() {
    using A = accumulate_t<T>;
    std::vector<SpectralLayer> layers;
    int64_t uv_at = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto [rows, slices, inner, leading] = shapes[i];
      layers.push_back({weights[i].data(), values<void>(u[i]), values<void>(v[i]), 0, uv_at, rows, slices, inner, leading});
      uv_at += rows + int64_t{slices} * inner;
    }
    std::unique_ptr<Pack<A>[]> workspace(new Pack<A>[place_in_workspace<A>(layers) / Pack<A>::size]);
    launch_power_iteration<T>(layers, workspace[0].values, values<A>(uv), values<A>(sigma), iterations, eps,
                              EmulatedLaunch{launches});
  });
  return launches;
}

void spectral_normalize(const Arrays& weights, const Arrays& outs, py::array sigma) {
  dispatch(weights.at(0), [&]<class T>() {
    using A = accumulate_t<T>;
    std::vector<TensorEntry<kNormalizeColumns>> entries;
    for (size_t i = 0; i < weights.size(); ++i)
      entries.push_back({{values<void>(weights[i]), values<void>(outs[i]), values<A>(sigma) + i}, weights[i].size()});
    for_each_table<T>(entries, [&]<int kCapacity>(const TensorTable<kNormalizeColumns, kCapacity>& table, int blocks) {
      emulator::launch(spectral_normalize_kernel<T, kCapacity>, blocks, kThreads, 0, table);
    });
  });
}

// The second derivative when there are grad_grads.
int spectral_normalize_gradients(const Arrays& grad_grads, const Arrays& grads, const Arrays& weights, const Arrays& grads_out,
                                 const Arrays& weights_out, const Shapes& shapes, py::array uv, py::array sigma) {
  int launches = 0;
  dispatch(weights.at(0), [&]<class T>() {
    using A = accumulate_t<T>;
    std::vector<SpectralGradient> layers;
    int64_t uv_at = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto [rows, slices, inner, leading] = shapes[i];
      const bool second = !grad_grads.empty();
      layers.push_back({second ? grad_grads[i].data() : nullptr, grads[i].data(), weights[i].data(),
                        second ? values<void>(grads_out[i]) : nullptr, values<void>(weights_out[i]), uv_at, weights[i].size(),
                        static_cast<int>(i), rows, slices, inner, leading});
      uv_at += rows + int64_t{slices} * inner;
    }
    std::unique_ptr<A[]> workspace(new A[gradient_workspace<T>(layers)]);
    if (grad_grads.empty()) {
      launch_gradients<T, false>(layers, workspace.get(), values<A>(uv), values<A>(sigma), EmulatedLaunch{launches});
    } else {
      launch_gradients<T, true>(layers, workspace.get(), values<A>(uv), values<A>(sigma), EmulatedLaunch{launches});
    }
  });
  return launches;
}

// Images are (N, C, H, W) in memory, or (N, H, W, C) with channels_last.
ImageLayout layout_of(const py::array& t, bool channels_last) {
  const int64_t a = t.shape(1), b = t.shape(2), c = t.shape(3);
  return channels_last ? ImageLayout{a * b * c, 1, b * c, c} : ImageLayout{a * b * c, b * c, c, 1};
}

// (up, down, pad, in, out) of an axis; the number of taps is the filter's.
using SideNumbers = std::array<int, 5>;

Resampling resampling_of(const SideNumbers& x, const SideNumbers& y, const py::array& f, bool flip) {
  const int across = static_cast<int>(f.shape(f.ndim() - 1)), along = static_cast<int>(f.shape(0));
  return {{x[0], x[1], x[2], across, x[3], x[4]}, {y[0], y[1], y[2], along, y[3], y[4]}, f.data(), f.ndim() == 1, flip};
}

struct EmulatedTiles {
  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, int64_t blocks, size_t shared, const Arguments&... arguments) const {
    emulator::launch(kernel, static_cast<unsigned int>(blocks), kResampleThreads, shared, arguments...);
  }
};

int channels_of(const py::array& x, bool channels_last) { return static_cast<int>(x.shape(channels_last ? 3 : 1)); }

void upfirdn2d(const py::array& x, py::array y, const py::array& f, const SideNumbers& across, const SideNumbers& along,
               bool flip, double gain, bool channels_last) {
  dispatch(x, [&]<class T>() {
    launch_upfirdn2d(values<T>(x), values<T>(y), resampling_of(across, along, f, flip), layout_of(x, channels_last),
                     layout_of(y, channels_last), x.shape(0), channels_of(x, channels_last), gain, EmulatedTiles{});
  });
}

// `multiply`: the mask is read, else it is written where there is one.
void filtered_lrelu(const py::array& x, const std::optional<py::array>& bias, py::array y, std::optional<py::array> mask,
                    bool multiply, const py::array& fu, const py::array& fd, const std::array<SideNumbers, 4>& sides,
                    bool flip, double gain, double slope, double clamp, bool channels_last) {
  const Resampling up = resampling_of(sides[0], sides[1], fu, flip), down = resampling_of(sides[2], sides[3], fd, flip);
  dispatch(x, [&]<class T>() {
    const auto launch = [&]<Middle kMiddle>() {
      launch_filtered_lrelu<T, kMiddle>(
          values<T>(x), bias ? values<T>(*bias) : nullptr, values<T>(y), mask ? values<uint8_t>(*mask) : nullptr, up, down,
          layout_of(x, channels_last), layout_of(y, channels_last),
          mask ? layout_of(*mask, channels_last) : ImageLayout{}, x.shape(0), channels_of(x, channels_last), gain, slope,
          clamp, EmulatedTiles{});
    };
    if (multiply) {
      launch.template operator()<Middle::multiply>();
    } else if (mask) {
      launch.template operator()<Middle::activate_and_keep>();
    } else {
      launch.template operator()<Middle::activate>();
    }
  });
}

// -------------------------------------------------------------------------- kernels that test the emulator itself

float* data(py::array_t<float> array) { return array.mutable_data(); }

// Sum of each block's elements: warp shuffles, then shared memory between the warps.
void block_sum_kernel(const float* x, float* sums) {
  __shared__ float partial[32];
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(kFullMask, sum, offset);
    if (threadIdx.x == 0) atomicAdd(&sums[blockIdx.x], sum);
  }
}

// Reverses each block through dynamic shared memory.
template <bool kBarrier>
void reverse_kernel(const float* x, float* y) {
  GK_DYNAMIC_SHARED(float, tile);
  const unsigned int first = blockIdx.x * blockDim.x;
  tile[threadIdx.x] = x[first + threadIdx.x];
  if (kBarrier) __syncthreads();
  y[first + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

template <int kPastTheEnd>
void shared_write_kernel(float* y) {
  __shared__ float tile[32];
  tile[threadIdx.x + kPastTheEnd] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

void global_write_kernel(float* y, int past_the_end) { y[static_cast<int>(threadIdx.x) + past_the_end] = 1.0f; }

void dynamic_write_kernel(float* y, int past_the_end) {
  GK_DYNAMIC_SHARED(float, tile);
  tile[static_cast<int>(threadIdx.x) + past_the_end] = y[threadIdx.x];
}

void misaligned_load_kernel(float* y) {
  const Pack<float> pack = load_pack(y + 1);
  y[0] = pack.values[3];
}

void unwritten_kernel(float* y) {
  __shared__ float tile[32];
  if (threadIdx.x != 7) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

void exit_before_barrier_kernel(float* y) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  y[threadIdx.x] = 1.0f;
}

void two_barriers_kernel(float* y) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1.0f;
}

void absent_lane_kernel(float* y) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    y[threadIdx.x] = __shfl_sync(kFullMask, y[threadIdx.x], 0);
  }
}

// Every kind of warp operation, one row of y each.
void warp_operations_kernel(const float* x, float* y) {
  const int lane = static_cast<int>(threadIdx.x);
  const float value = x[lane];
  y[0 * 32 + lane] = __shfl_sync(kFullMask, value, 5);
  y[1 * 32 + lane] = __shfl_sync(kFullMask, value, lane + 3, 8);
  y[2 * 32 + lane] = __shfl_xor_sync(kFullMask, value, 7);
  y[3 * 32 + lane] = __shfl_down_sync(kFullMask, value, 2, 16);
  y[4 * 32 + lane] = __shfl_up_sync(kFullMask, value, 3);
  y[5 * 32 + lane] = static_cast<float>(__popc(__ballot_sync(kFullMask, value > 10.0f)));
  y[6 * 32 + lane] = static_cast<float>(__any_sync(kFullMask, lane == 31) + 2 * __all_sync(kFullMask, lane < 31));
  if (lane < 16) y[7 * 32 + lane] = __shfl_xor_sync(0xFFFFu, value, 1);
  __syncwarp();
}

}  // namespace

// Where the module was loaded: harness.py gives shared variables as offsets from here.
extern "C" __attribute__((visibility("default"))) char gankernels_emulator_anchor;
char gankernels_emulator_anchor;

PYBIND11_MODULE(gankernels_emulator, m) {
  py::enum_<emulator::Order>(m, "Order")
      .value("ascending", emulator::Order::ascending)
      .value("descending", emulator::Order::descending)
      .value("shuffled", emulator::Order::shuffled);
  m.def("set_order", [](emulator::Order order) { emulator::machine.order = order; });
  m.def("set_only_last_block", [](bool only) { emulator::machine.only_last_block = only; });
  m.def("set_shared_variables", [](const std::vector<std::pair<int64_t, size_t>>& offsets) {
    emulator::machine.shared_variables.clear();
    for (const auto& [offset, bytes] : offsets) {
      emulator::machine.shared_variables.push_back({&gankernels_emulator_anchor + offset, bytes});
    }
  });

  m.def("clip_weights", clip_weights);
  m.def("rmsprop", rmsprop, py::kw_only(), py::arg("weights"), py::arg("grads"), py::arg("square_avgs"),
        py::arg("momentum_buffers"), py::arg("grad_avgs"), py::arg("ema"), py::arg("lr_tensor"), py::arg("lr"),
        py::arg("alpha"), py::arg("eps"), py::arg("weight_decay"), py::arg("momentum"), py::arg("maximize"),
        py::arg("clip"), py::arg("ema_decay"));
  m.def("adam", adam, py::kw_only(), py::arg("weights"), py::arg("grads"), py::arg("exp_avgs"), py::arg("exp_avg_sqs"),
        py::arg("max_exp_avg_sqs"), py::arg("ema"), py::arg("steps"), py::arg("lr_tensor"), py::arg("lr"),
        py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled_weight_decay"),
        py::arg("maximize"), py::arg("clip"), py::arg("ema_decay"));

  m.def("spectral_norm_power_iteration", spectral_norm_power_iteration);
  m.def("spectral_normalize", spectral_normalize);
  m.def("spectral_normalize_gradients", spectral_normalize_gradients);

  m.def("upfirdn2d", upfirdn2d);
  m.def("filtered_lrelu", filtered_lrelu);

  using Array = py::array_t<float>;
  m.def("block_sum", [](Array x, Array sums) {
    emulator::launch(block_sum_kernel, static_cast<unsigned int>(sums.size()),
                     static_cast<unsigned int>(x.size() / sums.size()), 0, data(x), data(sums));
  });
  m.def("reverse", [](Array x, Array y, unsigned int block, bool barrier) {
    const unsigned int grid = static_cast<unsigned int>(x.size()) / block;
    emulator::launch(barrier ? reverse_kernel<true> : reverse_kernel<false>, grid, block, block * sizeof(float),
                     data(x), data(y));
  });
  m.def("shared_write", [](Array y, bool past_the_end) {
    emulator::launch(past_the_end ? shared_write_kernel<1> : shared_write_kernel<0>, 1, 32, 0, data(y));
  });
  m.def("global_write", [](Array y, int past_the_end) {
    emulator::launch(global_write_kernel, 1, static_cast<unsigned int>(y.size()), 0, data(y), past_the_end);
  });
  m.def("dynamic_write", [](Array y, int past_the_end) {
    emulator::launch(dynamic_write_kernel, 1, 32, 32 * sizeof(float), data(y), past_the_end);
  });
  m.def("misaligned_load", [](Array y) { emulator::launch(misaligned_load_kernel, 1, 1, 0, data(y)); });
  m.def("unwritten", [](Array y) { emulator::launch(unwritten_kernel, 1, 32, 0, data(y)); });
  m.def("exit_before_barrier", [](Array y) { emulator::launch(exit_before_barrier_kernel, 1, 64, 0, data(y)); });
  m.def("two_barriers", [](Array y) { emulator::launch(two_barriers_kernel, 1, 64, 0, data(y)); });
  m.def("absent_lane", [](Array y) { emulator::launch(absent_lane_kernel, 1, 32, 0, data(y)); });
  m.def("warp_operations",
        [](Array x, Array y) { emulator::launch(warp_operations_kernel, 1, 32, 0, data(x), data(y)); });
}
