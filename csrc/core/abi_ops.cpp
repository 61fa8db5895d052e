// abi_ops.cpp: the ops of fluxir.h: argument checks, then the backend's function. In the header's order.
#include "abi.h"

using fx::Check;
using fx::dim;
using fx::kBF16;
using fx::kF16;
using fx::kF32;
using fx::kFloat;

// The backend's entry for an op, and the call through it.
#define FX_RUN(check, name, ...) (check).run(ctx->backend->ops.name != nullptr, [&] { return ctx->backend->ops.name(ctx, __VA_ARGS__); })

namespace {

unsigned only(const fx_tensor* t) { return t && t->dtype >= 0 && t->dtype <= FX_DTYPE_F16 ? 1u << t->dtype : 0u; }

// A gradient of a parameter: absent, or F32 of the parameter's shape, contiguous.
void param_grad(Check& c, const char* name, const fx_tensor* grad, const fx_tensor* like) {
  if (grad) c.like(name, grad, like, kF32).contiguous(name, grad);
}

}  // namespace

extern "C" {

// rows as x or dy with another last dimension.
static void rows_like(Check& c, const char* name, const fx_tensor* t, const fx_tensor* rows, int64_t last) {
  if (!rows) return;
  if (rows->rank == 3) c.shape(name, t, only(rows), {dim(rows, 0), dim(rows, 1), last});
  else c.shape(name, t, only(rows), {dim(rows, 0), last});
}

static void check_linear_gate(Check& c, const fx_tensor* gate, const fx_tensor* rows, int64_t O, fx_act act) {
  c.that(act >= FX_ACT_NONE && act <= FX_ACT_SILU, "act: unknown");
  if (!gate) return;
  c.that(rows && rows->rank == 3, "gate: want rows [B,L]").that(act == FX_ACT_NONE, "gate and act: want one of them");
  c.shape("gate", gate, only(rows), {dim(rows, 0), O});
}

fx_status fx_linear_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* pre, const fx_tensor* x, const fx_tensor* residual,
                            const fx_tensor* gate, const fx_tensor* w, const fx_tensor* b, fx_act act) {
  Check c(ctx, "linear_forward");
  c.rank("x", x, kFloat, 2, 3).rank("w", w, only(x), 2, 2);
  int64_t O = dim(w, 0);
  rows_like(c, "y", y, x, O);
  c.that(x && dim(x, x->rank - 1) == dim(w, 1), "x: last dimension differs from w's second");
  if (b) c.shape("b", b, only(x), {O});
  check_linear_gate(c, gate, x, O, act);
  c.that(!residual == !gate, "residual and gate: want both or none");
  if (residual) rows_like(c, "residual", residual, x, O);
  if (pre) rows_like(c, "pre", pre, x, O);
  c.that(!pre || gate || act != FX_ACT_NONE, "pre: want act or gate");
  return FX_RUN(c, linear_forward, y, pre, x, residual, gate, w, b, act);
}

fx_status fx_linear_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dgate, const fx_tensor* dw, const fx_tensor* db,
                             const fx_tensor* dy, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* w, const fx_tensor* pre,
                             fx_act act, int32_t accumulate) {
  Check c(ctx, "linear_backward");
  c.rank("dy", dy, kFloat, 2, 3).rank("w", w, only(dy), 2, 2);
  c.that(dy && dim(dy, dy->rank - 1) == dim(w, 0), "dy: last dimension differs from w's first");
  if (dw) rows_like(c, "x", x, dy, dim(w, 1));
  if (dx) rows_like(c, "dx", dx, dy, dim(w, 1));
  check_linear_gate(c, gate, dy, dim(w, 0), act);
  c.that(pre || (!dgate && act == FX_ACT_NONE), "pre: wanted by act and dgate");
  if (pre) c.like("pre", pre, dy);
  c.that(gate || !dgate, "dgate without gate");
  if (dgate) c.like("dgate", dgate, gate);
  param_grad(c, "dw", dw, w);
  if (db) c.shape("db", db, kF32, {dim(w, 0)});
  return FX_RUN(c, linear_backward, dx, dgate, dw, db, dy, x, gate, w, pre, act, accumulate);
}

// q [B,Lq,H,D]; k and v [B,Lk,H,D].
static void check_attention(Check& c, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v) {
  c.rank("q", q, kFloat, 4, 4).shape("k", k, only(q), {dim(q, 0), dim(k, 1), dim(q, 2), dim(q, 3)}).like("v", v, k);
  c.that(dim(q, 3) % 8 == 0 && dim(q, 3) <= 512, "head dim: want a multiple of 8, at most 512").that(dim(k, 1) > 0, "k: no keys");
}

// Weights of the tokens before (i = 0) or from (i = 1) norm->split on, and their gradients.
static void check_qk_weights(Check& c, const fx_qk_norm* norm, int i, const fx_tensor* q, bool normed) {
  auto check = [&](const char* name, const fx_tensor* weight, const char* grad_name, const fx_tensor* grad) {
    if (normed || weight->rank > 0) c.shape(name, weight, only(q), {dim(q, 3)});
    if (grad->rank > 0) c.that(weight->rank > 0, "gradient of a weight that is absent").shape(grad_name, grad, kF32, {dim(q, 3)});
  };
  check(i ? "query[1]" : "query[0]", &norm->query[i], i ? "dquery[1]" : "dquery[0]", &norm->dquery[i]);
  check(i ? "key[1]" : "key[0]", &norm->key[i], i ? "dkey[1]" : "dkey[0]", &norm->dkey[i]);
}

static void check_qk_norm(Check& c, const fx_qk_norm* norm, const fx_tensor* q, const fx_tensor* k) {
  if (!norm || !q || !k) return;
  int64_t L = dim(q, 1);
  c.that(dim(k, 1) == L, "norm: want as many queries as keys").that(norm->split >= 0 && norm->split <= L, "split: want 0..L");
  bool normed = norm->query[0].rank > 0 || norm->query[1].rank > 0 || norm->key[0].rank > 0 || norm->key[1].rank > 0;
  check_qk_weights(c, norm, 0, q, normed && norm->split > 0);
  check_qk_weights(c, norm, 1, q, normed && norm->split < L);
  if (norm->pe.rank > 0) c.shape("pe", &norm->pe, kF32, {L, dim(q, 3) / 2, 2}).contiguous("pe", &norm->pe);
}

fx_status fx_attention_forward(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k,
                               const fx_tensor* v, const fx_qk_norm* norm, float scale) {
  Check c(ctx, "attention_forward");
  check_attention(c, q, k, v);
  c.like("o", o, q);
  if (lse) c.shape("lse", lse, kF32, {dim(q, 0), dim(q, 2), dim(q, 1)}).contiguous("lse", lse);
  check_qk_norm(c, norm, q, k);
  return FX_RUN(c, attention_forward, o, lse, q, k, v, norm, scale);
}

fx_status fx_attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                                const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                                const fx_qk_norm* norm, float scale) {
  Check c(ctx, "attention_backward");
  check_attention(c, q, k, v);
  c.like("o", o, q).like("do", d_o, q).like("dq", dq, q).like("dk", dk, k).like("dv", dv, k);
  c.shape("lse", lse, kF32, {dim(q, 0), dim(q, 2), dim(q, 1)}).contiguous("lse", lse);
  check_qk_norm(c, norm, q, k);
  return FX_RUN(c, attention_backward, dq, dk, dv, d_o, q, k, v, o, lse, norm, scale);
}

fx_status fx_rope_table(fx_ctx* ctx, const fx_tensor* pe, const fx_tensor* ids, const int32_t axes[3], double theta) {
  Check c(ctx, "rope_table");
  c.that(axes != nullptr, "axes: got NULL");
  if (!axes) return FX_RUN(c, rope_table, pe, ids, axes, theta);
  int64_t d = int64_t(axes[0]) + axes[1] + axes[2];
  for (int i = 0; i < 3; i++) c.that(axes[i] >= 0 && axes[i] % 2 == 0, "axes: want even, not negative");
  c.that(theta > 0, "theta: want > 0");
  c.rank("ids", ids, kF32, 2, 2)
      .that(dim(ids, 1) == 3, "ids: want [L,3]")
      .shape("pe", pe, kF32, {dim(ids, 0), d / 2, 2})
      .contiguous("pe", pe);
  return FX_RUN(c, rope_table, pe, ids, axes, theta);
}

fx_status fx_qk_norm_rope_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight,
                                  const fx_tensor* pe, float eps) {
  Check c(ctx, "qk_norm_rope_forward");
  c.rank("x", x, kFloat, 4, 4).like("y", y, x).that(dim(x, 3) % 2 == 0, "head dim: want even");
  if (rstd) c.shape("rstd", rstd, kF32, {dim(x, 0), dim(x, 1), dim(x, 2)}).contiguous("rstd", rstd);
  if (weight) c.shape("weight", weight, only(x), {dim(x, 3)});
  if (pe) c.shape("pe", pe, kF32, {dim(x, 1), dim(x, 3) / 2, 2}).contiguous("pe", pe);
  return FX_RUN(c, qk_norm_rope_forward, y, rstd, x, weight, pe, eps);
}

fx_status fx_qk_norm_rope_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                                   const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  Check c(ctx, "qk_norm_rope_backward");
  c.rank("dy", dy, kFloat, 4, 4).like("dx", dx, dy).that(dim(dy, 3) % 2 == 0, "head dim: want even");
  if (weight) {
    c.like("x", x, dy).shape("weight", weight, only(dy), {dim(dy, 3)});
    c.shape("rstd", rstd, kF32, {dim(dy, 0), dim(dy, 1), dim(dy, 2)}).contiguous("rstd", rstd);
    param_grad(c, "dweight", dweight, weight);
  }
  c.that(weight || !dweight, "dweight without weight");
  if (pe) c.shape("pe", pe, kF32, {dim(dy, 1), dim(dy, 3) / 2, 2}).contiguous("pe", pe);
  return FX_RUN(c, qk_norm_rope_backward, dx, dweight, dy, x, rstd, weight, pe);
}

fx_status fx_adaln_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                           const fx_tensor* shift, const fx_tensor* scale, float eps) {
  Check c(ctx, "adaln_forward");
  c.rank("x", x, kFloat, 3, 3).like("y", y, x);
  c.shape("shift", shift, only(x), {dim(x, 0), dim(x, 2)}).shape("scale", scale, only(x), {dim(x, 0), dim(x, 2)});
  c.that(!mean == !rstd, "mean and rstd: want both or none");
  if (mean && rstd)
    c.shape("mean", mean, kF32, {dim(x, 0), dim(x, 1)}).contiguous("mean", mean).like("rstd", rstd, mean).contiguous("rstd", rstd);
  return FX_RUN(c, adaln_forward, y, mean, rstd, x, shift, scale, eps);
}

fx_status fx_adaln_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dshift, const fx_tensor* dscale, const fx_tensor* dy,
                            const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* scale, int32_t accumulate) {
  Check c(ctx, "adaln_backward");
  c.rank("x", x, kFloat, 3, 3).like("dy", dy, x).like("dx", dx, x).shape("scale", scale, only(x), {dim(x, 0), dim(x, 2)});
  c.shape("mean", mean, kF32, {dim(x, 0), dim(x, 1)}).contiguous("mean", mean).like("rstd", rstd, mean).contiguous("rstd", rstd);
  c.that(!dshift == !dscale, "dshift and dscale: want both or none");
  if (dshift && dscale) c.like("dshift", dshift, scale).like("dscale", dscale, scale);
  return FX_RUN(c, adaln_backward, dx, dshift, dscale, dy, x, mean, rstd, scale, accumulate);
}

fx_status fx_gate_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha) {
  Check c(ctx, "gate_forward");
  c.rank("x", x, kFloat, 3, 3).like("y", y, x).like("r", r, x).shape("gate", gate, only(x) | kF32, {dim(x, 0), dim(x, 2)});
  return FX_RUN(c, gate_forward, y, x, gate, r, alpha);
}

fx_status fx_gate_backward(fx_ctx* ctx, const fx_tensor* dr, const fx_tensor* dgate, const fx_tensor* dy, const fx_tensor* gate,
                           const fx_tensor* r, float alpha, int32_t accumulate) {
  Check c(ctx, "gate_backward");
  c.rank("dy", dy, kFloat, 3, 3).shape("gate", gate, only(dy) | kF32, {dim(dy, 0), dim(dy, 2)});
  if (dr) c.like("dr", dr, dy);
  if (dgate) c.like("r", r, dy).like("dgate", dgate, gate);
  return FX_RUN(c, gate_backward, dr, dgate, dy, gate, r, alpha, accumulate);
}

fx_status fx_act_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, fx_act act) {
  Check c(ctx, "act_forward");
  c.rank("x", x, kFloat, 1, 4).like("y", y, x).that(act == FX_ACT_GELU_TANH || act == FX_ACT_SILU, "act: want gelu_tanh or silu");
  return FX_RUN(c, act_forward, y, x, act);
}

fx_status fx_act_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* x, fx_act act) {
  Check c(ctx, "act_backward");
  c.rank("x", x, kFloat, 1, 4)
      .like("dx", dx, x)
      .like("dy", dy, x)
      .that(act == FX_ACT_GELU_TANH || act == FX_ACT_SILU, "act: want gelu_tanh or silu");
  return FX_RUN(c, act_backward, dx, dy, x, act);
}

fx_status fx_se_squeeze_forward(fx_ctx* ctx, const fx_tensor* m, const fx_tensor* x) {
  Check c(ctx, "se_squeeze_forward");
  c.rank("x", x, kFloat, 3, 3).shape("m", m, kF32, {dim(x, 0), dim(x, 2)}).contiguous("m", m);
  return FX_RUN(c, se_squeeze_forward, m, x);
}

fx_status fx_se_squeeze_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dm) {
  Check c(ctx, "se_squeeze_backward");
  c.rank("dx", dx, kFloat, 3, 3).shape("dm", dm, kF32, {dim(dx, 0), dim(dx, 2)}).contiguous("dm", dm);
  return FX_RUN(c, se_squeeze_backward, dx, dm);
}

fx_status fx_se_excite_forward(fx_ctx* ctx, const fx_tensor* a, const fx_tensor* u, const fx_tensor* s, const fx_tensor* m,
                               const fx_tensor* w1, const fx_tensor* b1, const fx_tensor* w2, const fx_tensor* b2, const fx_tensor* gain) {
  Check c(ctx, "se_excite_forward");
  c.rank("m", m, kF32, 2, 2).rank("w1", w1, kFloat, 2, 2);
  int64_t B = dim(m, 0), C = dim(m, 1), R = dim(w1, 0);
  c.shape("w1", w1, kFloat, {R, C}).shape("b1", b1, only(w1), {R}).shape("w2", w2, only(w1), {C, R});
  c.shape("b2", b2, only(w1), {C}).shape("gain", gain, only(w1), {C});
  c.shape("a", a, kF32, {B, C}).shape("s", s, kF32, {B, C}).shape("u", u, kF32, {B, R});
  c.contiguous("m", m).contiguous("a", a).contiguous("u", u).contiguous("s", s).contiguous("w1", w1).contiguous("w2", w2);
  return FX_RUN(c, se_excite_forward, a, u, s, m, w1, b1, w2, b2, gain);
}

fx_status fx_se_excite_backward(fx_ctx* ctx, const fx_tensor* dm, const fx_tensor* dw1, const fx_tensor* db1, const fx_tensor* dw2,
                                const fx_tensor* db2, const fx_tensor* dgain, const fx_tensor* da, const fx_tensor* m, const fx_tensor* u,
                                const fx_tensor* s, const fx_tensor* w1, const fx_tensor* w2, const fx_tensor* gain) {
  Check c(ctx, "se_excite_backward");
  c.rank("m", m, kF32, 2, 2).rank("w1", w1, kFloat, 2, 2);
  int64_t B = dim(m, 0), C = dim(m, 1), R = dim(w1, 0);
  c.shape("w1", w1, kFloat, {R, C}).shape("w2", w2, only(w1), {C, R}).shape("gain", gain, only(w1), {C});
  c.shape("da", da, kF32, {B, C}).shape("s", s, kF32, {B, C}).shape("u", u, kF32, {B, R}).shape("dm", dm, kF32, {B, C});
  c.contiguous("m", m).contiguous("da", da).contiguous("u", u).contiguous("s", s).contiguous("dm", dm);
  c.contiguous("w1", w1).contiguous("w2", w2);
  bool all = dw1 && db1 && dw2 && db2 && dgain, none = !dw1 && !db1 && !dw2 && !db2 && !dgain;
  c.that(all || none, "parameter gradients: want all or none");
  if (all) {
    param_grad(c, "dw1", dw1, w1);
    param_grad(c, "dw2", dw2, w2);
    c.shape("db1", db1, kF32, {R}).shape("db2", db2, kF32, {C}).shape("dgain", dgain, kF32, {C});
  }
  return FX_RUN(c, se_excite_backward, dm, dw1, db1, dw2, db2, dgain, da, m, u, s, w1, w2, gain);
}

// Output extent of a convolution, -1 where the kernel does not fit.
static int64_t conv_out(int64_t in, int64_t kernel, int64_t before, int64_t after, int64_t stride) {
  int64_t span = in + before + after - kernel;
  return span < 0 ? -1 : span / stride + 1;
}

static void check_conv2d(Check& c, const char* yname, const fx_tensor* y, const char* xname, const fx_tensor* x, const fx_tensor* w,
                         const fx_conv2d_args* a, unsigned dtypes) {
  c.that(a && (a->stride == 1 || a->stride == 2), "stride: want 1 or 2");
  c.that(a && a->pad_top >= 0 && a->pad_left >= 0 && a->pad_bottom >= 0 && a->pad_right >= 0, "pad: want not negative");
  c.rank(xname, x, dtypes, 4, 4).rank("w", w, dtypes, 4, 4).contiguous("w", w);
  c.that(dim(x, 3) == dim(w, 1), "input channels differ from w's second dimension");
  if (!a || (a->stride != 1 && a->stride != 2)) return;
  c.shape(yname, y, dtypes,
          {dim(x, 0), conv_out(dim(x, 1), dim(w, 2), a->pad_top, a->pad_bottom, a->stride),
           conv_out(dim(x, 2), dim(w, 3), a->pad_left, a->pad_right, a->stride), dim(w, 0)});
}

fx_status fx_conv2d_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b,
                            const fx_conv2d_args* args) {
  Check c(ctx, "conv2d_forward");
  check_conv2d(c, "y", y, "x", x, w, args, only(x) & kFloat);
  if (b) c.shape("b", b, only(x), {dim(w, 0)});
  return FX_RUN(c, conv2d_forward, y, x, w, b, args);
}

fx_status fx_conv2d_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                             const fx_tensor* x, const fx_tensor* w, const fx_conv2d_args* args) {
  Check c(ctx, "conv2d_backward");
  check_conv2d(c, "dy", dy, "x", x, w, args, only(dy) & kFloat);
  if (dx) c.like("dx", dx, x);
  param_grad(c, "dw", dw, w);
  if (db) c.shape("db", db, kF32, {dim(w, 0)});
  return FX_RUN(c, conv2d_backward, dx, dw, db, dy, x, w, args);
}

static void check_groupnorm(Check& c, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b, const fx_groupnorm_args* a) {
  c.rank("x", x, kFloat, 4, 4).shape("w", w, only(x), {dim(x, 3)}).shape("b", b, only(x), {dim(x, 3)});
  c.that(a && a->groups > 0 && dim(x, 3) % a->groups == 0, "groups: want a divisor of the channels");
}

fx_status fx_groupnorm_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                               const fx_tensor* w, const fx_tensor* b, const fx_groupnorm_args* args) {
  Check c(ctx, "groupnorm_forward");
  check_groupnorm(c, x, w, b, args);
  c.like("y", y, x).that(!mean == !rstd, "mean and rstd: want both or none");
  if (mean && rstd && args)
    c.shape("mean", mean, kF32, {dim(x, 0), args->groups}).contiguous("mean", mean).like("rstd", rstd, mean).contiguous("rstd", rstd);
  return FX_RUN(c, groupnorm_forward, y, mean, rstd, x, w, b, args);
}

fx_status fx_groupnorm_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                                const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* w, const fx_tensor* b,
                                const fx_groupnorm_args* args) {
  Check c(ctx, "groupnorm_backward");
  check_groupnorm(c, x, w, b, args);
  c.like("dy", dy, x).like("dx", dx, x);
  if (args)
    c.shape("mean", mean, kF32, {dim(x, 0), args->groups}).contiguous("mean", mean).like("rstd", rstd, mean).contiguous("rstd", rstd);
  c.that(!dw == !db, "dw and db: want both or none");
  if (dw && db) c.shape("dw", dw, kF32, {dim(x, 3)}).shape("db", db, kF32, {dim(x, 3)});
  return FX_RUN(c, groupnorm_backward, dx, dw, db, dy, x, mean, rstd, w, b, args);
}

fx_status fx_upsample_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  Check c(ctx, "upsample_forward");
  c.rank("x", x, kFloat, 4, 4).shape("y", y, only(x), {dim(x, 0), 2 * dim(x, 1), 2 * dim(x, 2), dim(x, 3)});
  return FX_RUN(c, upsample_forward, y, x);
}

fx_status fx_upsample_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy) {
  Check c(ctx, "upsample_backward");
  c.rank("dx", dx, kFloat, 4, 4).shape("dy", dy, only(dx), {dim(dx, 0), 2 * dim(dx, 1), 2 * dim(dx, 2), dim(dx, 3)});
  return FX_RUN(c, upsample_backward, dx, dy);
}

fx_status fx_pack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  Check c(ctx, "pack");
  c.rank("x", x, kFloat, 4, 4).that(dim(x, 1) % 2 == 0 && dim(x, 2) % 2 == 0, "x: want even height and width");
  c.shape("y", y, only(x), {dim(x, 0), dim(x, 1) / 2 * (dim(x, 2) / 2), 4 * dim(x, 3)});
  return FX_RUN(c, pack, y, x);
}

fx_status fx_unpack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  Check c(ctx, "unpack");
  c.rank("y", y, kFloat, 4, 4).that(dim(y, 1) % 2 == 0 && dim(y, 2) % 2 == 0, "y: want even height and width");
  c.shape("x", x, only(y), {dim(y, 0), dim(y, 1) / 2 * (dim(y, 2) / 2), 4 * dim(y, 3)});
  return FX_RUN(c, unpack, y, x);
}

fx_status fx_layout(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  Check c(ctx, "layout");
  // Any strides are the point of this op, so only the shapes are compared, through stand-ins whose last stride is 1.
  c.that(x && y && x->rank >= 1 && y->rank >= 1 && x->rank <= FX_MAX_RANK && y->rank <= FX_MAX_RANK, "x, y: NULL or bad rank");
  fx_tensor xs = x ? *x : fx_tensor{}, ys = y ? *y : fx_tensor{};
  if (x && x->rank >= 1 && x->rank <= FX_MAX_RANK) xs.strides[x->rank - 1] = 1;
  if (y && y->rank >= 1 && y->rank <= FX_MAX_RANK) ys.strides[y->rank - 1] = 1;
  c.rank("x", &xs, kFloat | kF16, 1, FX_MAX_RANK).like("y", &ys, &xs, kFloat | kF16);
  return FX_RUN(c, layout, y, x);
}

fx_status fx_fill(fx_ctx* ctx, const fx_tensor* y, float value) {
  Check c(ctx, "fill");
  c.rank("y", y, kFloat, 1, FX_MAX_RANK);
  return FX_RUN(c, fill, y, value);
}

fx_status fx_sum_batch(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, int32_t accumulate) {
  Check c(ctx, "sum_batch");
  c.rank("dy", dy, kFloat, 2, FX_MAX_RANK).rank("dx", dx, accumulate ? kF32 : (only(dy) | kF32), 1, FX_MAX_RANK - 1);
  bool same = dx && dy && dx->rank == dy->rank - 1;
  for (int i = 0; same && i < dx->rank; i++) same = dx->shape[i] == dy->shape[i + 1];
  c.that(same, "dx: shape differs from one item of dy").contiguous("dx", dx);
  return FX_RUN(c, sum_batch, dx, dy, accumulate);
}

fx_status fx_add(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* a, const fx_tensor* b) {
  Check c(ctx, "add");
  c.rank("a", a, kFloat, 1, 4).like("b", b, a).like("y", y, a);
  return FX_RUN(c, add, y, a, b);
}

fx_status fx_axpby_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* p,
                           const fx_tensor* q) {
  Check c(ctx, "axpby_forward");
  c.rank("x", x, kFloat, 1, 4).like("y", y, x, kFloat).shape("p", p, kF32, {dim(x, 0)}).that(!w == !q, "w and q: want both or none");
  if (w && q) c.like("w", w, x, kFloat).shape("q", q, kF32, {dim(x, 0)});
  return FX_RUN(c, axpby_forward, y, x, w, p, q);
}

fx_status fx_axpby_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* p,
                            const fx_tensor* q) {
  Check c(ctx, "axpby_backward");
  c.rank("dy", dy, kFloat, 1, 4);
  if (dx) c.like("dx", dx, dy, kFloat).shape("p", p, kF32, {dim(dy, 0)});
  if (dw) c.like("dw", dw, dy, kFloat).shape("q", q, kF32, {dim(dy, 0)});
  return FX_RUN(c, axpby_backward, dx, dw, dy, p, q);
}

fx_status fx_timestep_embed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* t, double factor, double max_period) {
  Check c(ctx, "timestep_embed");
  c.rank("y", y, kFloat, 2, 2).shape("t", t, kF32, {dim(y, 0)}).that(dim(y, 1) % 2 == 0, "y: want an even dimension");
  c.that(max_period > 0, "max_period: want > 0");
  return FX_RUN(c, timestep_embed, y, t, factor, max_period);
}

static void check_moments(Check& c, const fx_tensor* moments) {
  c.rank("moments", moments, kFloat, 4, 4).that(dim(moments, 3) % 2 == 0, "moments: want an even number of channels");
}

fx_status fx_gaussian_forward(fx_ctx* ctx, const fx_tensor* z, const fx_tensor* moments, const fx_tensor* eps, float shift, float scale) {
  Check c(ctx, "gaussian_forward");
  check_moments(c, moments);
  c.shape("z", z, kFloat, {dim(moments, 0), dim(moments, 1), dim(moments, 2), dim(moments, 3) / 2});
  if (eps) c.like("eps", eps, z, kFloat);
  return FX_RUN(c, gaussian_forward, z, moments, eps, shift, scale);
}

fx_status fx_gaussian_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dz, const fx_tensor* moments, const fx_tensor* eps,
                               float scale) {
  Check c(ctx, "gaussian_backward");
  check_moments(c, moments);
  c.shape("dz", dz, kFloat, {dim(moments, 0), dim(moments, 1), dim(moments, 2), dim(moments, 3) / 2}).like("dmoments", dmoments, moments);
  if (eps) c.like("eps", eps, dz, kFloat);
  return FX_RUN(c, gaussian_backward, dmoments, dz, moments, eps, scale);
}

fx_status fx_gaussian_kl_forward(fx_ctx* ctx, const fx_tensor* kl, const fx_tensor* moments) {
  Check c(ctx, "gaussian_kl_forward");
  check_moments(c, moments);
  c.shape("kl", kl, kF32, {1});
  return FX_RUN(c, gaussian_kl_forward, kl, moments);
}

fx_status fx_gaussian_kl_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dkl, const fx_tensor* moments) {
  Check c(ctx, "gaussian_kl_backward");
  check_moments(c, moments);
  c.shape("dkl", dkl, kF32, {1}).like("dmoments", dmoments, moments);
  return FX_RUN(c, gaussian_kl_backward, dmoments, dkl, moments);
}

fx_status fx_flow_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* v, const fx_tensor* z0, const fx_tensor* z1) {
  Check c(ctx, "flow_loss_forward");
  c.rank("v", v, kFloat, 1, 4).like("z0", z0, v, kF32).like("z1", z1, v, kF32).shape("loss", loss, kF32, {1});
  return FX_RUN(c, flow_loss_forward, loss, v, z0, z1);
}

fx_status fx_flow_loss_backward(fx_ctx* ctx, const fx_tensor* dv, const fx_tensor* dloss, const fx_tensor* v, const fx_tensor* z0,
                                const fx_tensor* z1) {
  Check c(ctx, "flow_loss_backward");
  c.rank("v", v, kFloat, 1, 4).like("dv", dv, v).like("z0", z0, v, kF32).like("z1", z1, v, kF32).shape("dloss", dloss, kF32, {1});
  return FX_RUN(c, flow_loss_backward, dv, dloss, v, z0, z1);
}

static void check_pixel_loss(Check& c, const fx_tensor* x, const fx_tensor* target, const fx_tensor* weight, fx_distance distance) {
  c.rank("x", x, kFloat, 1, 4).like("target", target, x, kF32);
  if (weight) c.shape("weight", weight, kF32, {dim(x, 0)});
  c.that(distance >= FX_DISTANCE_L1 && distance <= FX_DISTANCE_CHARBONNIER, "distance: unknown");
}

fx_status fx_pixel_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* x, const fx_tensor* target, const fx_tensor* weight,
                                fx_distance distance) {
  Check c(ctx, "pixel_loss_forward");
  check_pixel_loss(c, x, target, weight, distance);
  c.shape("loss", loss, kF32, {1});
  return FX_RUN(c, pixel_loss_forward, loss, x, target, weight, distance);
}

fx_status fx_pixel_loss_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dloss, const fx_tensor* x, const fx_tensor* target,
                                 const fx_tensor* weight, fx_distance distance) {
  Check c(ctx, "pixel_loss_backward");
  check_pixel_loss(c, x, target, weight, distance);
  c.like("dx", dx, x).shape("dloss", dloss, kF32, {1});
  return FX_RUN(c, pixel_loss_backward, dx, dloss, x, target, weight, distance);
}

static void check_params(Check& c, const fx_adamw_param* params, int64_t count, bool update) {
  c.that(params && count > 0, "params: want at least one");
  for (int64_t i = 0; params && i < count; i++) {
    const fx_adamw_param& p = params[i];
    c.that(p.n >= 0 && p.grad, "params: negative size or NULL gradient");
    if (update) c.that(p.param && p.master && p.m && p.v && (p.dtype == FX_DTYPE_F32 || p.dtype == FX_DTYPE_BF16), "params: NULL or dtype");
  }
}

fx_status fx_grad_sum_squares(fx_ctx* ctx, const fx_tensor* out, const fx_adamw_param* params, int64_t count) {
  Check c(ctx, "grad_sum_squares");
  c.shape("out", out, kF32, {1});
  check_params(c, params, count, false);
  return FX_RUN(c, grad_sum_squares, out, params, count);
}

fx_status fx_adamw_step(fx_ctx* ctx, const fx_adamw_param* params, int64_t count, const fx_tensor* sum_squares, const fx_adamw_args* args) {
  Check c(ctx, "adamw_step");
  check_params(c, params, count, true);
  c.that(args && args->step >= 1 && args->lr >= 0 && args->beta1 >= 0 && args->beta1 < 1 && args->beta2 >= 0 && args->beta2 < 1,
         "args: step, lr or beta out of range");
  c.that(args && args->ema_decay >= 0 && args->ema_decay <= 1, "args: ema_decay: want 0..1");
  c.that(args && (args->clip == 0 || sum_squares), "clip without sum_squares");
  if (sum_squares) c.shape("sum_squares", sum_squares, kF32, {1});
  return FX_RUN(c, adamw_step, params, count, sum_squares, args);
}

}  // extern "C"
