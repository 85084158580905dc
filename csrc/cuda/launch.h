// What the launchers share: the device and stream of the tensors, dtype dispatch to device types, launch errors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>

#include "../common.h"

namespace gankernels::cuda {

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  GK_CHECK(error == cudaSuccess, op, ": the CUDA kernel could not be launched: ", cudaGetErrorString(error));
}

// Calls body.operator()<T>() with the device type of a floating dtype.
template <class Body>
void dispatch_floating(const char* op, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::BFloat16:
      return body.template operator()<__nv_bfloat16>();
    case ScalarType::Half:
      return body.template operator()<__half>();
    default:
      fail(op, ": expected a float64, float32, bfloat16 or float16 tensor, got ", torch::headeronly::toString(dtype));
  }
}

constexpr ScalarType kFloatingTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};

}  // namespace gankernels::cuda
