// linear.cu: the cuBLASLt side of a ctx.
#include <cublasLt.h>

#include "core/op.h"

namespace fx::cuda {

struct LinearState {};

void close_linear(LinearState* state) { delete state; }

int64_t linear_library_version() { return int64_t(cublasLtGetVersion()); }

void add_linear(fx_ops*) {}

}  // namespace fx::cuda
