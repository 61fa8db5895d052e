// attention.cpp: o = softmax(scale · q k^T) v per head, and its gradients. Never the whole Lq x Lk matrix: a block of queries meets a block
// of keys at a time and the softmax is kept up to date (Milakov & Gimelshein 2018; FlashAttention-2, arXiv:2307.08691).
// Queries and keys are normed and rotated while they are packed, and their gradients turned back while they are written.
//
// Queries lie in the lanes of vectors, keys and head dimensions go over registers. So all products, two forward and five backward, are one
// outer product (attention/products.h), and the statistics of the softmax, one per query, need no sums across lanes.
#include <math.h>

#include "attention/backward.h"
#include "attention/forward.h"
#include "attention/tiles.h"
#include "core/bf16.h"

namespace fx::FX_TIER {
namespace {

// Calls f with the kind of product and the type of the tensors. bf16 is widened to f32 where its own instructions are missing or slower
// (detect_bf16).
template <class F>
fx_status with_products(fx_dtype dtype, const F& f) {
  if (dtype == FX_DTYPE_F32) return f(Registers<float>{}, float{});
#if defined(__AVX512BF16__)
  switch (detect_bf16()) {
    case Bf16::widen: break;
    case Bf16::dot: return f(Registers<pair>{}, bf16{});
    case Bf16::tiles: return f(Tiles<TileUnit>{}, bf16{});
    case Bf16::stand_in: return f(Tiles<TileStandIn>{}, bf16{});
  }
#endif
  return f(Registers<float>{}, bf16{});
}

fx_status attention_forward(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k,
                            const fx_tensor* v, const fx_qk_norm* norm, float scale) {
  ForwardArgs a{o, lse, q, k, v, norm, scale};
  return with_products(q->dtype, [&](auto products, auto t) { return forward<decltype(products), decltype(t)>(ctx, a); });
}

fx_status attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                             const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                             const fx_qk_norm* norm, float scale) {
  BackwardArgs a{dq, dk, dv, d_o, q, k, v, o, lse, norm, scale};
  return with_products(q->dtype, [&](auto products, auto t) { return backward<decltype(products), decltype(t)>(ctx, a); });
}

}  // namespace

void add_attention(fx_ops* ops) {
  ops->attention_forward = attention_forward;
  ops->attention_backward = attention_backward;
}

}  // namespace fx::FX_TIER
