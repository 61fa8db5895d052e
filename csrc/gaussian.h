// gaussian.h: what the kernels of gaussian share on all devices.
#pragma once
#include "fluxir.h"

namespace fx {

constexpr float kLow = -30, kHigh = 20;  // bounds of logvar

// moments [.., 2C] as two tensors [.., C].
struct Halves {
  fx_tensor mean, logvar;

  explicit Halves(const fx_tensor* moments) : mean(*moments), logvar(*moments) {
    int64_t C = moments->shape[3] / 2;
    mean.shape[3] = logvar.shape[3] = C;
    logvar.data = static_cast<char*>(moments->data) + C * (moments->dtype == FX_DTYPE_F32 ? 4 : 2);
  }
};

}  // namespace fx
