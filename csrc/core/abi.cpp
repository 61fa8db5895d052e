// abi.cpp: contexts, buffers and copies of the C ABI, and the host-side rng. Ops are in abi_ops.cpp.
#include "abi.h"

#include <cstring>
#include <new>

struct fx_buffer {
  fx_ctx* ctx;
  void* data;
  int64_t bytes;
};

struct fx_upload {
  fx_ctx* ctx;
  void* event;  // the backend's
};

struct fx_graph {
  fx_ctx* ctx;
  void* graph;  // the backend's
};

namespace {

fx_status say(char* message, size_t capacity, fx_status status, const char* text, const char* device) {
  if (message && capacity > 0) snprintf(message, capacity, "ctx_create: %s: %s", device ? device : "(null)", text);
  return status;
}

}  // namespace

extern "C" {

fx_status fx_ctx_create(fx_ctx** ctx, const char* device, int32_t threads, char* message, size_t capacity) {
  if (!ctx) return say(message, capacity, FX_STATUS_INVALID, "ctx is NULL", device);
  *ctx = nullptr;
  if (!device || threads < 0) return say(message, capacity, FX_STATUS_INVALID, "no device name, or negative threads", device);
  const fx_backend* backend = nullptr;
  const char* reason = "no such device: want cpu, cuda or cuda:N";
  if (strcmp(device, "cpu") == 0) backend = fx::cpu_backend();
  else if (strcmp(device, "dry") == 0) backend = fx::dry_backend();
  else if (strncmp(device, "cuda", 4) == 0 && (device[4] == 0 || device[4] == ':')) backend = fx::cuda_backend(&reason);
  if (!backend) return say(message, capacity, FX_STATUS_UNAVAILABLE, reason, device);
  fx_ctx* c = new (std::nothrow) fx_ctx{backend, nullptr, threads, 0, 0, {}};
  if (!c) return say(message, capacity, FX_STATUS_OUT_OF_MEMORY, "out of memory", device);
  fx_status status = fx::fenced(c, "ctx_create", [&] { return c->backend->create(c, device); });
  if (status != FX_STATUS_OK) {
    say(message, capacity, status, c->message, device);
    delete c;
    return status;
  }
  *ctx = c;
  return FX_STATUS_OK;
}

void fx_ctx_destroy(fx_ctx* ctx) {
  if (!ctx) return;
  ctx->backend->destroy(ctx);
  delete ctx;
}

fx_status fx_ctx_sync(fx_ctx* ctx) {
  if (!ctx) return FX_STATUS_INVALID;
  return fx::fenced(ctx, "ctx_sync", [&] { return ctx->backend->sync(ctx); });
}

const char* fx_ctx_message(const fx_ctx* ctx) { return ctx ? ctx->message : "ctx is NULL"; }

fx_status fx_ctx_get_info(fx_ctx* ctx, fx_ctx_info* info) {
  if (!ctx || !info) return FX_STATUS_INVALID;
  memset(info, 0, sizeof *info);
  info->threads = ctx->threads;
  info->allocated = ctx->allocated;
  info->peak = ctx->peak;
  return fx::fenced(ctx, "ctx_get_info", [&] { return ctx->backend->get_info(ctx, info); });
}

fx_status fx_ctx_probe(fx_ctx* ctx, fx_probe_kind kind, double seconds, double* rate) {
  if (!ctx) return FX_STATUS_INVALID;
  if (!rate || !(seconds > 0) || kind < FX_PROBE_F32 || kind > FX_PROBE_TRIAD)
    return fx::fail(ctx, FX_STATUS_INVALID, "probe: kind %d, seconds %g: want a kind of fluxir.h and seconds above 0", int(kind), seconds);
  if (!ctx->backend->probe) return fx::fail(ctx, FX_STATUS_UNSUPPORTED, "probe: %s cannot measure its peaks", ctx->backend->name);
  return fx::fenced(ctx, "ctx_probe", [&] { return ctx->backend->probe(ctx, kind, seconds, rate); });
}

fx_status fx_buffer_create(fx_ctx* ctx, fx_buffer** buffer, int64_t bytes) {
  if (!ctx || !buffer) return FX_STATUS_INVALID;
  *buffer = nullptr;
  if (bytes <= 0) return fx::fail(ctx, FX_STATUS_INVALID, "buffer_create: bytes: got %lld want > 0", (long long)bytes);
  return fx::fenced(ctx, "buffer_create", [&]() -> fx_status {
    fx_buffer* b = new fx_buffer{ctx, nullptr, bytes};
    fx_status status = ctx->backend->allocate(ctx, &b->data, bytes);
    if (status != FX_STATUS_OK) {
      delete b;
      return status;
    }
    *buffer = b;
    return FX_STATUS_OK;
  });
}

void fx_buffer_destroy(fx_buffer* buffer) {
  if (!buffer) return;
  buffer->ctx->backend->release(buffer->ctx, buffer->data, buffer->bytes);
  delete buffer;
}

void* fx_buffer_data(const fx_buffer* buffer) { return buffer ? buffer->data : nullptr; }

fx_status fx_copy_to_device(fx_ctx* ctx, void* device, const void* host, int64_t bytes) {
  if (!ctx) return FX_STATUS_INVALID;
  if (bytes == 0) return FX_STATUS_OK;
  if (!device || !host || bytes < 0) return fx::fail(ctx, FX_STATUS_INVALID, "copy_to_device: NULL address or negative size");
  return fx::fenced(ctx, "copy_to_device", [&] { return ctx->backend->copy_to_device(ctx, device, host, bytes); });
}

fx_status fx_copy_to_host(fx_ctx* ctx, void* host, const void* device, int64_t bytes) {
  if (!ctx) return FX_STATUS_INVALID;
  if (bytes == 0) return FX_STATUS_OK;
  if (!device || !host || bytes < 0) return fx::fail(ctx, FX_STATUS_INVALID, "copy_to_host: NULL address or negative size");
  return fx::fenced(ctx, "copy_to_host", [&] { return ctx->backend->copy_to_host(ctx, host, device, bytes); });
}

fx_status fx_host_create(fx_ctx* ctx, void** host, int64_t bytes) {
  if (!ctx || !host) return FX_STATUS_INVALID;
  *host = nullptr;
  if (bytes <= 0) return fx::fail(ctx, FX_STATUS_INVALID, "host_create: bytes: got %lld want > 0", (long long)bytes);
  return fx::fenced(ctx, "host_create", [&] { return ctx->backend->host_allocate(ctx, host, bytes); });
}

void fx_host_destroy(fx_ctx* ctx, void* host, int64_t bytes) {
  if (ctx && host) ctx->backend->host_release(ctx, host, bytes);
}

fx_status fx_upload_create(fx_ctx* ctx, fx_upload** upload) {
  if (!ctx || !upload) return FX_STATUS_INVALID;
  *upload = new (std::nothrow) fx_upload{ctx, nullptr};
  return *upload ? FX_STATUS_OK : fx::fail(ctx, FX_STATUS_OUT_OF_MEMORY, "upload_create: out of memory");
}

fx_status fx_upload_start(fx_upload* upload, void* device, const void* host, int64_t bytes) {
  if (!upload) return FX_STATUS_INVALID;
  fx_ctx* ctx = upload->ctx;
  if (!device || !host || bytes <= 0) return fx::fail(ctx, FX_STATUS_INVALID, "upload_start: NULL address, or a size not above 0");
  return fx::fenced(ctx, "upload_start", [&] { return ctx->backend->upload_start(ctx, &upload->event, device, host, bytes); });
}

fx_status fx_upload_wait(fx_upload* upload) {
  if (!upload) return FX_STATUS_INVALID;
  fx_ctx* ctx = upload->ctx;
  return fx::fenced(ctx, "upload_wait", [&] { return ctx->backend->upload_wait(ctx, upload->event); });
}

void fx_upload_destroy(fx_upload* upload) {
  if (!upload) return;
  upload->ctx->backend->upload_end(upload->ctx, upload->event);
  delete upload;
}

fx_status fx_graph_begin(fx_ctx* ctx) {
  if (!ctx) return FX_STATUS_INVALID;
  if (!ctx->backend->graph_begin) return fx::fail(ctx, FX_STATUS_UNSUPPORTED, "graph_begin: %s has no graphs", ctx->backend->name);
  return fx::fenced(ctx, "graph_begin", [&] { return ctx->backend->graph_begin(ctx); });
}

fx_status fx_graph_end(fx_ctx* ctx, fx_graph** graph) {
  if (!ctx || !graph) return FX_STATUS_INVALID;
  *graph = nullptr;
  if (!ctx->backend->graph_end) return fx::fail(ctx, FX_STATUS_UNSUPPORTED, "graph_end: %s has no graphs", ctx->backend->name);
  return fx::fenced(ctx, "graph_end", [&]() -> fx_status {
    void* recorded = nullptr;
    fx_status status = ctx->backend->graph_end(ctx, &recorded);
    if (status == FX_STATUS_OK) *graph = new fx_graph{ctx, recorded};
    return status;
  });
}

fx_status fx_graph_launch(fx_graph* graph) {
  if (!graph) return FX_STATUS_INVALID;
  fx_ctx* ctx = graph->ctx;
  return fx::fenced(ctx, "graph_launch", [&] { return ctx->backend->graph_launch(ctx, graph->graph); });
}

void fx_graph_destroy(fx_graph* graph) {
  if (!graph) return;
  graph->ctx->backend->graph_release(graph->ctx, graph->graph);
  delete graph;
}

}  // extern "C"
