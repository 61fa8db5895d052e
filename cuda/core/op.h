// op.h: what every cuda/<op>.cu and backend_cuda.cpp include: the context's stream and workspace, launches, dispatch by dtype. Each op file
// defines add_<op>; the table wraps every op with what all of them need (backend_cuda.cpp: Entry): the ctx's device is current, and a
// launch that failed becomes a status.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#include "../../csrc/core/backend.h"

namespace fx::cuda {

// The stream all ops of ctx run on, in order.
cudaStream_t stream(fx_ctx* ctx);
// Device memory for the op under way, aligned to 256 bytes; the next op that asks gets the same memory. Ask once per op.
void* workspace(fx_ctx* ctx, int64_t bytes);
// The cuBLASLt side of ctx, made by linear.cu when it is first needed.
struct LinearState;
LinearState*& linear_state(fx_ctx* ctx);
void close_linear(LinearState* state);
// Version of cuBLASLt, as 130100 for 13.1.0.
int64_t linear_library_version();

// Out of device memory; what() says how much was wanted. The exception fence of the ABI makes it a status.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) { snprintf(text_, sizeof text_, "%lld bytes of device memory not available", (long long)bytes); }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[96];
};

// Throws what the fence turns into FX_STATUS_DEVICE.
inline void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class T>
T* data(const fx_tensor* t) {
  return t ? static_cast<T*>(t->data) : nullptr;
}

inline int64_t elements(const fx_tensor* t) {
  int64_t n = 1;
  for (int d = 0; d < t->rank; d++) n *= t->shape[d];
  return n;
}

constexpr int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
constexpr int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

}  // namespace fx::cuda
