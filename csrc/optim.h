// What the optimisers' CPU and CUDA kernels share on the host: checks, the table of tensors, steps and numbers.
#pragma once

#include <cmath>
#include <optional>

#include "multi_tensor.h"
#include "optim_update.h"

namespace gankernels {

// One row per weight; column 0 is the weight, 1 the gradient, 2 to 4 the state, 5 the moving average. Absent ones are
// null.
constexpr int kOptimizerColumns = 6;

struct OptimizerRow {
  std::array<void*, kOptimizerColumns> pointers{};
  int64_t numel;
  ScalarType dtype;
};

class OptimizerRows {
 public:
  OptimizerRows(const char* op, const TensorList& weights) : op_(op), weights_(weights) {
    check_weights(op, weights);
    rows.resize(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      flat_.push_back(memory_.weight(weights[i]));
      rows[i].pointers[0] = flat_[i].mutable_data_ptr();
      rows[i].numel = weights[i].numel();
      rows[i].dtype = weights[i].scalar_type();
    }
  }

  enum Kind { read, updated, updated_if_given };

  void add(int column, const char* name, const TensorList& list, Kind kind) {
    if (kind == updated_if_given && list.empty()) return;
    GK_CHECK(list.size() == weights_.size(), op_, ": ", name, " must hold one tensor per weight, ", weights_.size(),
             ", got ", list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      check_same_shape(op_, name, list[i], "its weight", weights_[i]);
      GK_CHECK(same_device(list[i], weights_[i]), op_, ": ", name, "[", i, "] must be on the device of its weight");
      const Tensor& t = memory_.beside(flat_[i], list[i], kind != read);
      rows[i].pointers[column] = kind == read ? const_cast<void*>(t.const_data_ptr()) : t.mutable_data_ptr();
    }
  }

  void write_back() { memory_.write_back(); }

  std::vector<OptimizerRow> rows;

 private:
  const char* op_;
  const TensorList& weights_;
  TensorList flat_;
  FlatMemory memory_;
};

inline void check_number(const char* op, const char* name, double value, double minimum, double maximum) {
  GK_CHECK(value >= minimum && value <= maximum && std::isfinite(value), op, ": ", name,
           " must be a finite number >= ", minimum, maximum < kNoClip ? " and <= " : "",
           maximum < kNoClip ? std::to_string(maximum) : "", ", got ", value);
}

inline double check_clip(const char* op, std::optional<double> clip) {
  if (!clip) return kNoClip;
  GK_CHECK(std::isfinite(*clip) && *clip > 0, op, ": clip must be a finite number > 0, got ", *clip);
  return *clip;
}

inline void check_lr_tensor(const char* op, const std::optional<Tensor>& lr) {
  if (!lr) return;
  GK_CHECK(lr->numel() == 1 && (lr->scalar_type() == ScalarType::Float || lr->scalar_type() == ScalarType::Double), op,
           ": lr_tensor must be one float32 or float64 number, got ", dtype_text(*lr), " of shape ",
           shape_text(lr->sizes()));
}

// The value of a one-element float32 or float64 tensor on the CPU.
inline double host_value(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? *data<double>(t) : static_cast<double>(*data<float>(t));
}

// Steps live on the CPU (the host computes the bias corrections) or, capturable, on the weights' device.
inline bool check_steps(const char* op, const TensorList& weights, const TensorList& steps) {
  GK_CHECK(steps.size() == weights.size(), op, ": steps must hold one tensor per weight, ", weights.size(), ", got ",
           steps.size());
  const bool on_host = steps.empty() || steps[0].is_cpu();
  for (size_t i = 0; i < steps.size(); ++i) {
    const Tensor& step = steps[i];
    const bool is_double = step.scalar_type() == ScalarType::Double;
    GK_CHECK(step.numel() == 1 && (step.scalar_type() == ScalarType::Float || (is_double && on_host)), op, ": steps[",
             i, "] must be one float32 number, got ", dtype_text(step), " of shape ", shape_text(step.sizes()));
    GK_CHECK(step.is_cpu() == on_host && (on_host || same_device(step, weights[i])), op,
             ": steps must all be on the CPU or all on the device of the weights");
  }
  return on_host;
}

// Adds one to every step and returns the new values.
inline std::vector<double> increment_host_steps(const TensorList& steps) {
  std::vector<double> values(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].scalar_type() == ScalarType::Double) {
      values[i] = *mutable_data<double>(steps[i]) += 1;
    } else {
      values[i] = *mutable_data<float>(steps[i]) += 1;
    }
  }
  return values;
}

inline RMSpropStep<double> rmsprop_step(const char* op, double lr, double alpha, double eps, double weight_decay,
                                        double momentum, bool maximize, std::optional<double> clip, double ema_decay) {
  check_number(op, "lr", lr, 0, kNoClip);
  check_number(op, "alpha", alpha, 0, 1);
  check_number(op, "eps", eps, 0, kNoClip);
  check_number(op, "weight_decay", weight_decay, 0, kNoClip);
  check_number(op, "momentum", momentum, 0, kNoClip);
  check_number(op, "ema_decay", ema_decay, 0, 1);
  return {.lr = lr,
          .alpha = alpha,
          .one_minus_alpha = 1 - alpha,
          .eps = eps,
          .weight_decay = weight_decay,
          .momentum = momentum,
          .sign = maximize ? -1.0 : 1.0,
          .clip = check_clip(op, clip),
          .ema_weight = 1 - ema_decay};
}

inline AdamStep<double> adam_step(const char* op, double lr, double beta1, double beta2, double eps,
                                  double weight_decay, bool decoupled_weight_decay, bool maximize,
                                  std::optional<double> clip, double ema_decay) {
  check_number(op, "lr", lr, 0, kNoClip);
  check_number(op, "beta1", beta1, 0, 1);
  check_number(op, "beta2", beta2, 0, 1);
  check_number(op, "eps", eps, 0, kNoClip);
  check_number(op, "weight_decay", weight_decay, 0, kNoClip);
  check_number(op, "ema_decay", ema_decay, 0, 1);
  return {.lr = lr,
          .one_minus_beta1 = 1 - beta1,
          .beta2 = beta2,
          .one_minus_beta2 = 1 - beta2,
          .eps = eps,
          .weight_decay = weight_decay,
          .sign = maximize ? -1.0 : 1.0,
          .clip = check_clip(op, clip),
          .ema_weight = 1 - ema_decay,
          .bias_correction1 = 1,
          .bias_correction2_sqrt = 1,
          .decoupled_weight_decay = decoupled_weight_decay};
}

// The step as the formulas of Adam need it, for a step count known on the host.
inline AdamStep<double> with_bias_corrections(AdamStep<double> step, double beta1, double beta2, double count) {
  step.bias_correction1 = 1 - std::pow(beta1, count);
  step.bias_correction2_sqrt = std::sqrt(1 - std::pow(beta2, count));
  return step;
}

}  // namespace gankernels
