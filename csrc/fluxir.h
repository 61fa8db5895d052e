/* fluxir.h: the C ABI of fluxir. The only header that Go, tests and backends include.
 *
 * Path: Go -> this ABI -> core/abi*.cpp (checks) -> one backend's table (core/backend.h) -> csrc/<op>.cpp or cuda/<op>.cu.
 *
 * Handles. fx_ctx is one device with one stream of work; it has one caller at a time, and the caller keeps to one OS thread
 * (libgomp and CUDA keep per-thread state). fx_buffer owns bytes on that device; fx_tensor describes a view and owns nothing. Who
 * creates frees. Ops are ordered; on the CPU they are finished on return, on CUDA after fx_ctx_sync.
 *
 * Errors. Every function returns an fx_status and never aborts, exits, prints or throws. The message is in the ctx
 * (fx_ctx_message): `op: what was wrong: got [..] want [..]`. Functions without a ctx take (char* message, size_t capacity).
 *
 * Shapes. Row-major, outermost first, as PyTorch documents them. B batch, L tokens (T text + N image), H heads, D head dim,
 * C channels, Y X pixels. Attention [B,L,H,D]; images [B,Y,X,C] (channels last); weights as in the checkpoint, [out,in] and [out,in,ky,kx].
 * Strides are in elements; the last dimension is contiguous (stride 1) unless an op says otherwise; the other strides are free, so views
 * of rows, columns and tokens need no copy. Outputs must not overlap inputs unless the op says "may alias". A dimension
 * of size 0 returns FX_STATUS_OK early.
 *
 * Dtypes. Activations and weights are F32 or BF16, all of one op alike; F16 only for fx_layout (loading). Per-channel parameters (bias,
 * norm weights) have the activations' dtype. Accumulators, statistics (mean, rstd, lse), losses, SE vectors, gradients of parameters and
 * optimizer state are F32.
 *
 * The accumulate rule. Backward functions ADD to gradients of parameters (dw, db, dweight, dgain, ... : F32, zeroed by the caller once a
 * step) and OVERWRITE gradients of activations. NULL for a gradient means "not wanted" and costs nothing. When a tensor has two consumers,
 * the tape adds the gradients; ops with an argument `accumulate` do it themselves where it is not 0: they add to the one gradient named
 * there instead of overwriting it, in f32 with one rounding.
 *
 * Determinism. Reductions have a fixed split: same input, same bits, at any thread count.
 */
#ifndef FLUXIR_H
#define FLUXIR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FX_ABI_VERSION 4

typedef int32_t fx_status;
enum {
  FX_STATUS_OK = 0,
  FX_STATUS_INVALID = 1,       /* an argument: shape, dtype, stride, range */
  FX_STATUS_OUT_OF_MEMORY = 2, /* host or device */
  FX_STATUS_UNSUPPORTED = 3,   /* the backend lacks the op for these arguments: the caller may fall back */
  FX_STATUS_UNAVAILABLE = 4,   /* no such device, or its backend does not load */
  FX_STATUS_DEVICE = 5,        /* the device or a library below reported a fault */
  FX_STATUS_INTERNAL = 6       /* a bug in fluxir */
};

typedef int32_t fx_dtype;
enum { FX_DTYPE_F32 = 0, FX_DTYPE_BF16 = 1, FX_DTYPE_F16 = 2 };

#define FX_MAX_RANK 5

typedef struct fx_ctx fx_ctx;
typedef struct fx_buffer fx_buffer;

/* A view: plain data, no ownership. strides in elements. */
typedef struct fx_tensor {
  void* data;
  fx_dtype dtype;
  int32_t rank;
  int64_t shape[FX_MAX_RANK];
  int64_t strides[FX_MAX_RANK];
} fx_tensor;

/* ---- context ---------------------------------------------------------------------------------------------------------------- */

/* Opens `device` ("cpu", "cuda", "cuda:1", or "dry": buffers are address space only, ops do nothing, copies to the host leave it as it is,
 * and info counts the memory that the same calls take on the CPU). threads: CPU threads per op, 0 = all cores the process may use. On
 * failure *ctx is NULL and the reason is in message. The environment variable FLUXIR_ISA = generic | avx2 | avx512 caps the CPU tier;
 * FLUXIR_POISON, if set, fills the CPU workspace with NaN before each op (tests). */
fx_status fx_ctx_create(fx_ctx** ctx, const char* device, int32_t threads, char* message, size_t capacity);
/* Frees ctx and its workspace. Buffers must have been freed before. NULL is allowed. */
void fx_ctx_destroy(fx_ctx* ctx);
/* Waits for all work and reports a pending device fault. */
fx_status fx_ctx_sync(fx_ctx* ctx);
/* The message of the last failed call on ctx; valid until the next call. */
const char* fx_ctx_message(const fx_ctx* ctx);

typedef struct fx_ctx_info {
  char device[32];     /* "cpu", "cuda:0" */
  char name[96];       /* processor or card */
  char isa[32];        /* CPU tier in use, or compute capability */
  char libraries[128]; /* versions of oneDNN, cuBLASLt below */
  int32_t threads;
  int64_t allocated; /* bytes in buffers and workspace now */
  int64_t peak;      /* highest value of allocated */
  int64_t free;      /* bytes of a card's memory that can still be had; 0 on the CPU, whose memory is the host's */
} fx_ctx_info;
fx_status fx_ctx_get_info(fx_ctx* ctx, fx_ctx_info* info);

typedef int32_t fx_probe_kind;
enum {
  FX_PROBE_F32 = 0,    /* GFLOP/s of f32 multiply-adds in registers (a multiply-add is two) */
  FX_PROBE_BF16 = 1,   /* GFLOP/s of dot products of bf16 pairs in vector registers, f32 sums */
  FX_PROBE_MATRIX = 2, /* GFLOP/s of bf16 products in matrix units (AMX, tensor cores), f32 sums */
  FX_PROBE_TRIAD = 3   /* GB/s of a = b + s·c over arrays that no cache holds: two reads and a write */
};
/* Measures a peak of the device with ctx's threads and the instructions of its tier, for about `seconds` > 0 (longer the first time). On
 * CUDA, F32 and MATRIX are square products of cuBLASLt, TRIAD is a copy on the card, its bytes read and written.
 * UNSUPPORTED where there is no such unit. What it reaches varies with the clock, so benchmarks repeat it. */
fx_status fx_ctx_probe(fx_ctx* ctx, fx_probe_kind kind, double seconds, double* rate);

/* ---- memory ----------------------------------------------------------------------------------------------------------------- */

/* bytes > 0, aligned to 64. The contents are undefined. */
fx_status fx_buffer_create(fx_ctx* ctx, fx_buffer** buffer, int64_t bytes);
void fx_buffer_destroy(fx_buffer* buffer);
/* Device address; on the CPU it can be read and written by the host. */
void* fx_buffer_data(const fx_buffer* buffer);
/* Copies between host memory and a device address; done on return. */
fx_status fx_copy_to_device(fx_ctx* ctx, void* device, const void* host, int64_t bytes);
fx_status fx_copy_to_host(fx_ctx* ctx, void* host, const void* device, int64_t bytes);

/* ---- uploads beside the ops -------------------------------------------------------------------------------------------------- */

/* Host memory that a card reads by itself (page-locked); on the CPU plain memory. bytes > 0, aligned to 64, contents undefined. */
fx_status fx_host_create(fx_ctx* ctx, void** host, int64_t bytes);
void fx_host_destroy(fx_ctx* ctx, void* host, int64_t bytes);

/* A copy to the device that runs beside ops, and can be made many times. start: the copy begins when the ops called so far are over; those
 * called later must leave `device` alone until wait, which lets the ops called after it run when the copy is done. Neither waits by itself.
 * host is memory of fx_host_create and must stay as it is until then. */
typedef struct fx_upload fx_upload;
fx_status fx_upload_create(fx_ctx* ctx, fx_upload** upload);
fx_status fx_upload_start(fx_upload* upload, void* device, const void* host, int64_t bytes);
fx_status fx_upload_wait(fx_upload* upload);
/* The copy must be over. NULL is allowed. */
void fx_upload_destroy(fx_upload* upload);

/* ---- graphs ------------------------------------------------------------------------------------------------------------------ */

/* Ops recorded once and run again by one call, on the same addresses with the same shapes. Between begin and end ops are recorded, not run.
 * They must have run before in the same way, so that nothing is left to be prepared: what cannot be recorded (copies, buffers, sync, a
 * workspace that would grow) fails with UNSUPPORTED. UNSUPPORTED altogether on the CPU and with FLUXIR_SYNC. */
typedef struct fx_graph fx_graph;
fx_status fx_graph_begin(fx_ctx* ctx);
/* Ends the recording in any case; *graph is NULL where it failed. */
fx_status fx_graph_end(fx_ctx* ctx, fx_graph** graph);
/* INVALID when the ctx's workspace has moved since the recording. */
fx_status fx_graph_launch(fx_graph* graph);
/* NULL is allowed. */
void fx_graph_destroy(fx_graph* graph);

/* ---- linear ----------------------------------------------------------------------------------------------------------------- */

typedef int32_t fx_act;
enum { FX_ACT_NONE = 0, FX_ACT_GELU_TANH = 1, FX_ACT_SILU = 2 };

/* y = act(u) with u = x w^T + b, or y = residual + gate_b ⊙ u: the product and what follows it, while its tiles are in the cache.
 * x [M,I] or [B,L,I]; w [O,I]; b [O] or NULL; y as x with O. residual as y and gate [B,O]: both or NULL, with x [B,L,I] and act none; y may
 * alias residual. pre: u as y, rounded to the activations' dtype, saved for the backward of act or gate, NULL if not wanted; act and gate
 * take u before that rounding. */
fx_status fx_linear_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* pre, const fx_tensor* x, const fx_tensor* residual,
                            const fx_tensor* gate, const fx_tensor* w, const fx_tensor* b, fx_act act);
/* With du = dy, dy ⊙ act'(pre), or gate_b ⊙ dy, in the activations' dtype: dx = du w; dgate = sum over L of dy ⊙ pre [B,O], in gate's
 * dtype; dw += du^T x [O,I] F32; db += sum of du [O] F32. dresidual is dy itself. dx, dgate, dw, db may be NULL: the frozen base asks for
 * dx only. pre is read by act and dgate, else NULL. accumulate: dx +=. */
fx_status fx_linear_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dgate, const fx_tensor* dw, const fx_tensor* db,
                             const fx_tensor* dy, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* w, const fx_tensor* pre,
                             fx_act act, int32_t accumulate);

/* ---- attention -------------------------------------------------------------------------------------------------------------- */

/* What an attention over [text; image] does to the rows of q and k before their product: rope(rmsnorm(x) · weight) per token and head, over
 * D, in f32, rounded at most once. A tensor of rank 0 is absent. */
typedef struct fx_qk_norm {
  fx_tensor query[2], key[2];   /* weights [D]: [0] of the tokens before `split`, [1] of the others; all absent: no norm */
  fx_tensor dquery[2], dkey[2]; /* their gradients [D] F32, which backward adds to; absent: not wanted. Forward does not look at them */
  fx_tensor pe;                 /* [L,D/2,2] F32 contiguous, of fx_rope_table, pairs (2i, 2i+1); absent: no rotation */
  int64_t split;                /* in [0, L]; weights of no token may be absent */
  float eps;
} fx_qk_norm;

/* o = softmax(scale q' k'^T) v per head, online softmax, no mask; q' and k' are q and k as `norm` makes them (NULL: as they are; else
 * Lq = Lk = L). q, o [B,Lq,H,D]; k, v [B,Lk,H,D]; lse [B,H,Lq] F32 contiguous: log-sum-exp of scale·q'·k', saved for backward, NULL if not
 * wanted. D a multiple of 8, at most 512. */
fx_status fx_attention_forward(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k,
                               const fx_tensor* v, const fx_qk_norm* norm, float scale);
/* dq, dk (of q and k, before norm) and dv all wanted; recomputes the probabilities from lse, and the norms; deterministic. */
fx_status fx_attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                                const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                                const fx_qk_norm* norm, float scale);

/* ---- rope, qk_norm_rope ----------------------------------------------------------------------------------------------------- */

/* Rotation table pe [L, D/2, 2] F32 = (cos, sin) of ids[l,axis] · theta^(-2i/axes[axis]), angles in f64. ids [L,3] F32; axes: the dims
 * of the three axes, even, summing to D. (flux: math.py rope) */
fx_status fx_rope_table(fx_ctx* ctx, const fx_tensor* pe, const fx_tensor* ids, const int32_t axes[3], double theta);

/* y = rope(rmsnorm(x) · weight): per (token, head), over D. x, y [B,L,H,D]; rstd [B,L,H] F32 contiguous, saved, may be NULL;
 * weight [D] or NULL (then no norm: rope alone); pe [L,D/2,2] or NULL (then no rotation: RMSNorm alone). Pairs are
 * (2i, 2i+1). Statistics and rotation in f32, one rounding. y may alias x when no backward follows. */
fx_status fx_qk_norm_rope_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight,
                                  const fx_tensor* pe, float eps);
/* dx =; dweight [D] F32 +=. rstd and weight NULL as in forward. dx may alias dy. */
fx_status fx_qk_norm_rope_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                                   const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe);

/* ---- adaln, gate, act ------------------------------------------------------------------------------------------------------- */

/* y = layernorm(x) · (1 + scale_b) + shift_b, no affine. x, y [B,L,C]; shift, scale [B,C]; mean, rstd [B,L] F32 contiguous, saved, may be
 * NULL together. Biased variance. */
fx_status fx_adaln_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                           const fx_tensor* shift, const fx_tensor* scale, float eps);
/* dx =, dshift =, dscale = [B,C] (activations: they come from the modulation). dshift and dscale may be NULL together. accumulate: dx +=.
 */
fx_status fx_adaln_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dshift, const fx_tensor* dscale, const fx_tensor* dy,
                            const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* scale, int32_t accumulate);

/* y = x + alpha · gate_b ⊙ r: the gated residual, and the SE broadcast (alpha = lambda). x, r, y [B,L,C]; gate [B,C] of the activations'
 * dtype or F32. y may alias x. */
fx_status fx_gate_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha);
/* dr = alpha · gate ⊙ dy; dgate = alpha · sum over L of dy ⊙ r, in gate's dtype. dx is dy itself. Either may be NULL. accumulate: dr +=. */
fx_status fx_gate_backward(fx_ctx* ctx, const fx_tensor* dr, const fx_tensor* dgate, const fx_tensor* dy, const fx_tensor* gate,
                           const fx_tensor* r, float alpha, int32_t accumulate);

/* y = act(x), any shape up to rank 4. y may alias x when no backward follows. */
fx_status fx_act_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, fx_act act);
/* dx = dy · act'(x). dx may alias dy. */
fx_status fx_act_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* x, fx_act act);

/* ---- se: squeeze and excitation (spec 3.4), in f32 -------------------------------------------------------------------------- */

/* m = mean over L of x. x [B,L,C]; m [B,C] F32. */
fx_status fx_se_squeeze_forward(fx_ctx* ctx, const fx_tensor* m, const fx_tensor* x);
/* dx = dm / L, broadcast. */
fx_status fx_se_squeeze_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dm);

/* u = w1 m + b1 [B,R]; s = sigmoid(w2 silu(u) + b2) [B,C]; a = gain ⊙ s [B,C]. m, u, s, a F32 contiguous; w1 [R,C], b1 [R], w2 [C,R], b2
 * [C], gain [C] F32 or BF16. u and s are saved for backward. */
fx_status fx_se_excite_forward(fx_ctx* ctx, const fx_tensor* a, const fx_tensor* u, const fx_tensor* s, const fx_tensor* m,
                               const fx_tensor* w1, const fx_tensor* b1, const fx_tensor* w2, const fx_tensor* b2, const fx_tensor* gain);
/* dm = [B,C]; dw1, db1, dw2, db2, dgain += F32, NULL all together when the adapter is frozen. */
fx_status fx_se_excite_backward(fx_ctx* ctx, const fx_tensor* dm, const fx_tensor* dw1, const fx_tensor* db1, const fx_tensor* dw2,
                                const fx_tensor* db2, const fx_tensor* dgain, const fx_tensor* da, const fx_tensor* m, const fx_tensor* u,
                                const fx_tensor* s, const fx_tensor* w1, const fx_tensor* w2, const fx_tensor* gain);

/* ---- images: conv2d, groupnorm, upsample ------------------------------------------------------------------------------------ */

typedef struct fx_conv2d_args {
  int32_t stride;                                   /* 1 or 2, both directions */
  int32_t pad_top, pad_left, pad_bottom, pad_right; /* zeros */
} fx_conv2d_args;
/* x [B,Y,X,I]; w [O,I,KY,KX] contiguous; b [O] or NULL; y [B,Y',X',O]. */
fx_status fx_conv2d_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b,
                            const fx_conv2d_args* args);
/* dx =, dw +=, db +=, each may be NULL. */
fx_status fx_conv2d_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                             const fx_tensor* x, const fx_tensor* w, const fx_conv2d_args* args);

typedef struct fx_groupnorm_args {
  int32_t groups; /* divides C */
  int32_t silu;   /* 1: y = silu(norm) */
  float eps;
} fx_groupnorm_args;
/* x, y [B,Y,X,C]; w, b [C]; mean, rstd [B,groups] F32, saved, may be NULL together. */
fx_status fx_groupnorm_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                               const fx_tensor* w, const fx_tensor* b, const fx_groupnorm_args* args);
/* dx =, dw +=, db += (NULL together when frozen). */
fx_status fx_groupnorm_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                                const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* w, const fx_tensor* b,
                                const fx_groupnorm_args* args);

/* Nearest neighbour, twice the size. x [B,Y,X,C] -> y [B,2Y,2X,C]. */
fx_status fx_upsample_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x);
/* dx = sum of the four. */
fx_status fx_upsample_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy);

/* ---- layout: pack, unpack, layout, fill, broadcast -------------------------------------------------------------------------- */

/* 2x2 packing as FLUX: x [B,Y,X,C], Y and X even -> y [B, (Y/2)(X/2), 4C], token row-major, channel c·4 + dy·2 + dx. Its backward is
 * unpack, and the other way round. */
fx_status fx_pack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x);
/* x [B, (Y/2)(X/2), 4C] -> y [B,Y,X,C]. */
fx_status fx_unpack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x);
/* y = x with any strides on both sides (x may have stride 0: a broadcast) and conversion of dtype, round to nearest even. Same shape,
 * rank up to 5. */
fx_status fx_layout(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x);
/* y = value. */
fx_status fx_fill(fx_ctx* ctx, const fx_tensor* y, float value);
/* dx [..] = sum over b of dy [B,..]: the backward of a broadcast over the batch. dx += when accumulate is not 0 (a parameter, F32). */
fx_status fx_sum_batch(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, int32_t accumulate);

/* ---- elementwise ------------------------------------------------------------------------------------------------------------ */

/* y = a + b, same shape and dtype, rank up to 4. y may alias a or b. */
fx_status fx_add(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* a, const fx_tensor* b);
/* y[b,..] = p[b] x[b,..] + q[b] w[b,..]: noising z_t = (1-t) z_0 + t z_1, the Euler step, velocity from a sample, sums of losses. x, w, y
 * any F32 / BF16 mix, rank 1..4; p, q [B] F32; w and q may be NULL together. y may alias x or w. */
fx_status fx_axpby_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* p, const fx_tensor* q);
/* dx = p dy, dw = q dy; either may be NULL. */
fx_status fx_axpby_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* p,
                            const fx_tensor* q);
/* Sinusoid of factor·t: y [B,dim] = (cos(a), sin(a)), a_i = factor · t · max_period^(-i/(dim/2)), in f64, rounded to f32 and then to y's
 * dtype. t [B] F32; dim even. (flux: layers.py timestep_embedding, factor 1000, max_period 10000) */
fx_status fx_timestep_embed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* t, double factor, double max_period);

/* ---- the VAE's Gaussian ----------------------------------------------------------------------------------------------------- */

/* z = (mean + exp(logvar/2) ⊙ eps − shift) · scale. moments [B,Y,X,2C] = (mean, logvar), logvar clamped to [-30, 20]; z [B,Y,X,C]; eps as
 * z, NULL: the mean. */
fx_status fx_gaussian_forward(fx_ctx* ctx, const fx_tensor* z, const fx_tensor* moments, const fx_tensor* eps, float shift, float scale);
fx_status fx_gaussian_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dz, const fx_tensor* moments, const fx_tensor* eps,
                               float scale);
/* kl [1] F32 = mean over B of ½ Σ (mean² + exp(logvar) − 1 − logvar). */
fx_status fx_gaussian_kl_forward(fx_ctx* ctx, const fx_tensor* kl, const fx_tensor* moments);
fx_status fx_gaussian_kl_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dkl, const fx_tensor* moments);

/* ---- losses ----------------------------------------------------------------------------------------------------------------- */

/* loss [1] F32 = mean of (v − (z1 − z0))². v F32 or BF16, z0, z1 F32, same shape, rank up to 4. The target is never stored. */
fx_status fx_flow_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* v, const fx_tensor* z0, const fx_tensor* z1);
/* dv = dloss · 2/n · (v − (z1 − z0)). dloss [1] F32. */
fx_status fx_flow_loss_backward(fx_ctx* ctx, const fx_tensor* dv, const fx_tensor* dloss, const fx_tensor* v, const fx_tensor* z0,
                                const fx_tensor* z1);

typedef int32_t fx_distance;
enum { FX_DISTANCE_L1 = 0, FX_DISTANCE_L2 = 1, FX_DISTANCE_CHARBONNIER = 2 }; /* |e|, e², √(e² + 1e-6) */
/* loss [1] F32 = mean over b of weight[b] · mean of rho(x − target). x [B,..] F32 or BF16, target F32, weight [B] F32 or NULL (1). */
fx_status fx_pixel_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* x, const fx_tensor* target, const fx_tensor* weight,
                                fx_distance distance);
/* dx =. The gradient of |e| at 0 is 0. */
fx_status fx_pixel_loss_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dloss, const fx_tensor* x, const fx_tensor* target,
                                 const fx_tensor* weight, fx_distance distance);

/* ---- optimizer -------------------------------------------------------------------------------------------------------------- */

/* One parameter: n elements, contiguous. param: the working copy the model reads, in dtype; if it is F32 it may be master itself. */
typedef struct fx_adamw_param {
  void* param;
  fx_dtype dtype;
  int32_t reserved;
  float* master;
  float* m;
  float* v;
  const float* grad;
  float* ema; /* average of master over the steps, NULL: none */
  int64_t n;
} fx_adamw_param;
typedef struct fx_adamw_args {
  float lr, beta1, beta2, eps, weight_decay;
  float clip;      /* largest global norm; 0: no clipping */
  float ema_decay; /* 0..1, read where a parameter has an ema */
  int32_t reserved;
  int64_t step; /* 1 for the first */
} fx_adamw_args;
/* out [1] F32 = Σ grad², accumulated in f64 in a fixed order over all parameters: the square of the global norm. */
fx_status fx_grad_sum_squares(fx_ctx* ctx, const fx_tensor* out, const fx_adamw_param* params, int64_t count);
/* g = grad · min(1, clip/(√sum_squares + 1e-6)); master −= lr·wd·master; Adam with bias correction, eps outside the root. sum_squares [1]
 * F32 from fx_grad_sum_squares, NULL when clip = 0. It stays on the device: no synchronisation. Then, with the new master,
 * ema = ema_decay · ema + (1 − ema_decay) · master. */
fx_status fx_adamw_step(fx_ctx* ctx, const fx_adamw_param* params, int64_t count, const fx_tensor* sum_squares, const fx_adamw_args* args);

/* ---- processes -------------------------------------------------------------------------------------------------------------- */

/* The processes that `mpirun` started, as one group. The engine is MPI, in libfluxir_mpi.so, which is opened by fx_comm_create and not
 * before; the environment variable FLUXIR_MPI names the file. Every process makes the same calls in the same order; one thread at a time.
 * Failures of another process may end the program. */
typedef struct fx_comm fx_comm;
typedef struct fx_comm_info {
  int32_t rank, size; /* of this process, 0 first; of the group */
  int32_t local_rank; /* among those of this machine */
  int32_t local_size;
  int32_t machines;
  int32_t threads; /* cores that this process may use, over the processes that share them; at least 1 */
} fx_comm_info;
/* Joins the group; collective. UNAVAILABLE, with the reason in message, where the engine does not load. */
fx_status fx_comm_create(fx_comm** comm, fx_comm_info* info, char* message, size_t capacity);
/* Leaves it; collective. NULL is allowed. */
void fx_comm_destroy(fx_comm* comm);
/* Begins to replace the tensors (F32, contiguous, of ctx's device) by their sums over all processes, and returns: a thread of the engine
 * does it, bucket after bucket. The sum's order depends on sizes alone, and all processes get the same bits. Nobody may touch the tensors
 * until fx_comm_wait. */
fx_status fx_comm_allreduce_start(fx_comm* comm, fx_ctx* ctx, const fx_tensor* tensors, int64_t count);
/* Waits for all sums that were started. */
fx_status fx_comm_wait(fx_comm* comm, fx_ctx* ctx);
/* Copies bytes of host memory of process 0 to all others. Where process 0 passes, what it did before is done. */
fx_status fx_comm_broadcast(fx_comm* comm, void* host, int64_t bytes, char* message, size_t capacity);
/* Ends the programs of all processes, this one with the exit code. Does not return. */
void fx_comm_abort(fx_comm* comm, int32_t code);

/* ---- rng (host; spec 7) ----------------------------------------------------------------------------------------------------- */

/* words[4·i .. 4·i+3] = Philox4x32-10 of counter (block+i, stream), key = seed. Host memory; nothing can fail. */
void fx_philox_words(uint32_t* words, int64_t blocks, uint64_t seed, uint64_t stream, uint64_t block);
/* out[i] = normal number of element offset + i of the stream (Box-Muller in f64, rounded to f32). Host memory. */
void fx_philox_normal(float* out, int64_t n, uint64_t seed, uint64_t stream, uint64_t offset);

#ifdef __cplusplus
}
#endif
#endif
