// backend.h: what a backend provides: memory verbs and one function pointer per op. core/abi*.cpp validates arguments and then calls
// through this table; backends assume valid arguments. An op pointer may be NULL: "not supported".
#pragma once
#include <cstdarg>
#include <cstdio>

#include "../fluxir.h"

// Every op of fluxir.h that runs on a device, in the header's order.
// clang-format off
#define FX_OP_LIST(OP)                                                                                             \
  OP(linear_forward) OP(linear_backward)                                                                           \
  OP(attention_forward) OP(attention_backward)                                                                     \
  OP(rope_table) OP(qk_norm_rope_forward) OP(qk_norm_rope_backward)                                                \
  OP(adaln_forward) OP(adaln_backward) OP(gate_forward) OP(gate_backward) OP(act_forward) OP(act_backward)         \
  OP(se_squeeze_forward) OP(se_squeeze_backward) OP(se_excite_forward) OP(se_excite_backward)                      \
  OP(conv2d_forward) OP(conv2d_backward) OP(groupnorm_forward) OP(groupnorm_backward)                              \
  OP(upsample_forward) OP(upsample_backward)                                                                       \
  OP(pack) OP(unpack) OP(layout) OP(fill) OP(sum_batch)                                                            \
  OP(add) OP(axpby_forward) OP(axpby_backward) OP(timestep_embed)                                                  \
  OP(gaussian_forward) OP(gaussian_backward) OP(gaussian_kl_forward) OP(gaussian_kl_backward)                      \
  OP(flow_loss_forward) OP(flow_loss_backward) OP(pixel_loss_forward) OP(pixel_loss_backward)                      \
  OP(grad_sum_squares) OP(adamw_step)
// clang-format on

struct fx_ops {
#define FX_OP_POINTER(name) decltype(&fx_##name) name;
  FX_OP_LIST(FX_OP_POINTER)
#undef FX_OP_POINTER
};

struct fx_backend {
  uint32_t abi_version;                                  // FX_ABI_VERSION the backend was compiled with
  const char* name;                                      // "cpu", "cuda"
  fx_status (*create)(fx_ctx* ctx, const char* device);  // sets ctx->state
  void (*destroy)(fx_ctx* ctx);
  fx_status (*sync)(fx_ctx* ctx);
  fx_status (*get_info)(fx_ctx* ctx, fx_ctx_info* info);
  fx_status (*allocate)(fx_ctx* ctx, void** data, int64_t bytes);
  void (*release)(fx_ctx* ctx, void* data, int64_t bytes);
  fx_status (*copy_to_device)(fx_ctx* ctx, void* device, const void* host, int64_t bytes);
  fx_status (*copy_to_host)(fx_ctx* ctx, void* host, const void* device, int64_t bytes);
  fx_status (*probe)(fx_ctx* ctx, fx_probe_kind kind, double seconds, double* rate);  // NULL: no peak can be measured
  fx_status (*host_allocate)(fx_ctx* ctx, void** host, int64_t bytes);
  void (*host_release)(fx_ctx* ctx, void* host, int64_t bytes);
  // *event is NULL before the first start, then the backend's; upload_end frees it.
  fx_status (*upload_start)(fx_ctx* ctx, void** event, void* device, const void* host, int64_t bytes);
  fx_status (*upload_wait)(fx_ctx* ctx, void* event);
  void (*upload_end)(fx_ctx* ctx, void* event);
  fx_status (*graph_begin)(fx_ctx* ctx);  // NULL: there are no graphs
  fx_status (*graph_end)(fx_ctx* ctx, void** graph);
  fx_status (*graph_launch)(fx_ctx* ctx, void* graph);
  void (*graph_release)(fx_ctx* ctx, void* graph);
  fx_ops ops;
};

struct fx_ctx {
  const fx_backend* backend;
  void* state;  // the backend's own
  int32_t threads;
  int64_t allocated, peak;
  char message[512];
};

namespace fx {

// Stores a message `op: what` in ctx and returns status.
__attribute__((format(printf, 3, 4))) inline fx_status fail(fx_ctx* ctx, fx_status status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(ctx->message, sizeof ctx->message, format, args);
  va_end(args);
  return status;
}

const fx_backend* cpu_backend();
const fx_backend* dry_backend();
// The table of libfluxir_cuda.so, which exports it as `const fx_backend* fx_backend_table()`; NULL with the reason where it does not load.
const fx_backend* cuda_backend(const char** reason);

}  // namespace fx
