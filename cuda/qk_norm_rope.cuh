// qk_norm_rope.cuh: y = rope(rmsnorm(x) · weight) and the way back, as attention uses them: its tensors [B,L,H,D], no workspace.
#pragma once
#include "core/op.h"

namespace fx::cuda {

// rstd [B,L,H], weight and pe may be NULL.
void norm_rope(fx_ctx* ctx, const fx_tensor* y, float* rstd, const fx_tensor* x, const fx_tensor* weight, const fx_tensor* pe, float eps);
// dweight may be NULL, else partial holds norm_rope_partial floats. dx may alias dy.
void norm_rope_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, float* partial, const fx_tensor* dy, const fx_tensor* x,
                        const float* rstd, const fx_tensor* weight, const fx_tensor* pe);
int64_t norm_rope_partial(int64_t tokens, int64_t D);

}  // namespace fx::cuda
