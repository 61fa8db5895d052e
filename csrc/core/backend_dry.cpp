// backend_dry.cpp: the dry device: memory is address space that nothing stands behind, ops do nothing. What runs on it counts the memory it
// would take on the CPU: buffers as they are asked for, and the workspace of the ops that need much of it, by running those of the CPU up
// to their call of workspace().
#include <sys/mman.h>

#include "cpu.h"

namespace fx {
namespace {

const fx_backend* real;  // the CPU's table

// An op of the dry table. All take ctx first.
template <class F>
struct Dry;
template <class... A>
struct Dry<fx_status (*)(fx_ctx*, A...)> {
  static fx_status skip(fx_ctx*, A...) { return FX_STATUS_OK; }
  template <auto Op>
  static fx_status measure(fx_ctx* ctx, A... arguments) {
    try {
      return (real->ops.*Op)(ctx, arguments...);
    } catch (const DryWorkspace&) {
      return FX_STATUS_OK;
    }
  }
};

// Only the products of a convolution's backward start with workspace().
fx_status conv2d_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                          const fx_tensor* x, const fx_tensor* w, const fx_conv2d_args* args) {
  if (!dx && !dw) return FX_STATUS_OK;
  return Dry<decltype(fx_ops::conv2d_backward)>::measure<&fx_ops::conv2d_backward>(ctx, dx, dw, db, dy, x, w, args);
}

// Memory of the host is not counted.
fx_status host_allocate(fx_ctx* ctx, void** host, int64_t bytes) {
  void* p = mmap(nullptr, size_t(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "no address space for %lld bytes", (long long)bytes);
  *host = p;
  return FX_STATUS_OK;
}

void host_release(fx_ctx*, void* host, int64_t bytes) { munmap(host, size_t(bytes)); }

fx_status upload_start(fx_ctx*, void**, void*, const void*, int64_t) { return FX_STATUS_OK; }

fx_status allocate(fx_ctx* ctx, void** data, int64_t bytes) {
  fx_status status = host_allocate(ctx, data, bytes);
  if (status == FX_STATUS_OK) count(ctx, bytes);
  return status;
}

void release(fx_ctx* ctx, void* data, int64_t bytes) {
  munmap(data, size_t(bytes));
  count(ctx, -bytes);
}

fx_status to_device(fx_ctx*, void*, const void*, int64_t) { return FX_STATUS_OK; }
fx_status to_host(fx_ctx*, void*, const void*, int64_t) { return FX_STATUS_OK; }

fx_status get_info(fx_ctx* ctx, fx_ctx_info* info) {
  fx_status status = real->get_info(ctx, info);
  snprintf(info->device, sizeof info->device, "dry");
  return status;
}

fx_backend make() {
  fx_backend b = *real;
  b.name = "dry";
  b.create = dry_create;
  b.allocate = allocate, b.release = release, b.copy_to_device = to_device, b.copy_to_host = to_host, b.get_info = get_info,
  b.probe = nullptr, b.host_allocate = host_allocate, b.host_release = host_release, b.upload_start = upload_start;
#define FX_SKIP(name) b.ops.name = Dry<decltype(b.ops.name)>::skip;
  FX_OP_LIST(FX_SKIP)
#undef FX_SKIP
  // These call workspace() in any case, and read no tensor before.
#define FX_MEASURE(name) b.ops.name = Dry<decltype(b.ops.name)>::measure<&fx_ops::name>
  FX_MEASURE(linear_forward);
  FX_MEASURE(linear_backward);
  FX_MEASURE(attention_forward);
  FX_MEASURE(attention_backward);
  FX_MEASURE(conv2d_forward);
  FX_MEASURE(groupnorm_forward);
  FX_MEASURE(groupnorm_backward);
#undef FX_MEASURE
  b.ops.conv2d_backward = conv2d_backward;
  return b;
}

}  // namespace

const fx_backend* dry_backend() {
  real = cpu_backend();
  static const fx_backend backend = make();
  return &backend;
}

}  // namespace fx
