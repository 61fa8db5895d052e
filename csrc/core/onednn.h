// onednn.h: the only place that knows oneDNN's API (2.6 and 3.x): GEMM and convolution primitives, prepared once per shape and kept in the
// ctx.
#pragma once
#include "cpu.h"

namespace fx {

// Caps oneDNN's own instruction choice at the tier. Has effect only before its first use in the process.
void onednn_limit(Tier tier);
void onednn_version(char* text, size_t capacity);
// Whether its primitives take bf16 on this processor; where not, ops stage their operands in f32.
bool onednn_bf16();

// The prepared primitives of one ctx, which onednn(ctx) of cpu.h returns.
OnednnCache* onednn_open();
void onednn_close(OnednnCache* cache);

// c [m,n] = a [m,k] · b [k,n], c in F32. Strides in elements; one of the two strides of a and of b is 1. Only int64 fields: the bytes are
// the cache's key.
struct MatmulSpec {
  int64_t m, n, k;
  int64_t a_row, a_col, b_row, b_col, c_row;
  int64_t dtype;  // fx_dtype of a and b
  int64_t pack;   // 1: b is first copied to the layout that the kernel likes best
};

enum ConvPass : int64_t { kConvForward, kConvBackwardData, kConvBackwardWeights };

// x [batch,in_y,in_x,in_c], w [out_c,in_c,ky,kx], y [batch,out_y,out_x,out_c], all contiguous. Backward data writes x; backward weights
// writes w in F32 whatever the dtype. Forward and backward data want w packed: see plan_pack.
struct ConvSpec {
  int64_t pass;  // ConvPass
  int64_t batch, in_y, in_x, in_c, out_y, out_x, out_c, ky, kx;
  int64_t stride, pad_top, pad_left, pad_bottom, pad_right;
  int64_t dtype, bias;
};

// A primitive for one spec, owned by the ctx: valid during the op that asked for it. Throws what oneDNN throws.
struct Plan;
const Plan* matmul_plan(fx_ctx* ctx, const MatmulSpec& spec);
const Plan* conv_plan(fx_ctx* ctx, const ConvSpec& spec);

// Bytes of work memory run() needs, a multiple of 64.
int64_t plan_bytes(const Plan* plan);
// Runs on the calling thread alone, so that no sum is ever split between threads; different threads may run one plan at once. Pointers in
// the order a, b, bias, c or x, w, bias, y; bias NULL without one. False when oneDNN reports a failure. Does not throw: it is called in
// parallel regions.
bool plan_run(const Plan* plan, void* a, void* b, void* bias, void* c, void* work);

// The layout in which a convolution takes w: its bytes, 0 where that is the plain one; whether two plans want the same; the copy, made by
// `threads` threads. False when oneDNN reports a failure.
int64_t plan_pack_bytes(const Plan* plan);
bool plan_packs_alike(const Plan* a, const Plan* b);
bool plan_pack(const Plan* plan, void* w, void* packed, int threads);

}  // namespace fx
