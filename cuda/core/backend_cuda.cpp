// backend_cuda.cpp: the CUDA backend's memory verbs and its table. One ctx is one card with one stream for all ops and one for uploads.
// Memory comes from the card's stream-ordered pool, so that freeing and allocating never wait; host data goes through pinned staging, so
// that an upload returns as soon as the host's bytes are taken over. Only sync and copies to the host wait for the card.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "fx_files.h"
#include "op.h"

namespace fx::cuda {

#define FX_DECLARE(file) void add_##file(fx_ops* ops);
FX_FILES(FX_DECLARE)
#undef FX_DECLARE

namespace {

constexpr int kSlots = 4;
constexpr int64_t kSlotBytes = 4 << 20;

// Pinned staging memory; ready: the copy that used it last is over.
struct Slot {
  char* data;
  cudaEvent_t ready;
};

struct State {
  int device;
  cudaDeviceProp properties;
  cudaStream_t compute, copy;
  cudaEvent_t order;  // joins the two streams
  Slot slots[kSlots];
  int next;  // slot
  void* scratch;
  int64_t scratch_bytes;
  LinearState* linear;
  bool poison, sync_each_op;
};

State* state(fx_ctx* ctx) { return static_cast<State*>(ctx->state); }

void count(fx_ctx* ctx, int64_t bytes) {
  ctx->allocated += bytes;
  ctx->peak = std::max(ctx->peak, ctx->allocated);
}

// The status of a CUDA call, with its message. An error of an allocation or of a launch's arguments is forgotten by the runtime, so that
// the next call starts afresh; a fault of the card stays.
fx_status check(fx_ctx* ctx, cudaError_t error, const char* what) {
  if (error == cudaSuccess) return FX_STATUS_OK;
  cudaGetLastError();
  fx_status status = error == cudaErrorMemoryAllocation ? FX_STATUS_OUT_OF_MEMORY : FX_STATUS_DEVICE;
  return fail(ctx, status, "%s: %s", what, cudaGetErrorString(error));
}

// Memory from the pool, in the order of the compute stream. When there is none, what the pool keeps in reserve goes back to the card first.
bool allocate_on(State* s, void** data, int64_t bytes) {
  if (cudaMallocAsync(data, size_t(bytes), s->compute) == cudaSuccess) return true;
  cudaGetLastError();
  cudaMemPool_t pool;
  if (cudaStreamSynchronize(s->compute) != cudaSuccess || cudaDeviceGetDefaultMemPool(&pool, s->device) != cudaSuccess) return false;
  cudaMemPoolTrimTo(pool, 0);
  if (cudaMallocAsync(data, size_t(bytes), s->compute) == cudaSuccess) return true;
  cudaGetLastError();
  *data = nullptr;
  return false;
}

fx_status pick_device(fx_ctx* ctx, const char* name, State* s) {
  char* end = nullptr;
  s->device = name[4] == ':' ? int(strtol(name + 5, &end, 10)) : 0;
  if (end && (end == name + 5 || *end)) return fail(ctx, FX_STATUS_INVALID, "want cuda or cuda:N");
  int devices = 0, driver = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  cudaDriverGetVersion(&driver);
  if (error == cudaErrorInsufficientDriver && driver > 0)
    return fail(ctx, FX_STATUS_UNAVAILABLE, "the driver supports CUDA %d.%d, this build needs %d.%d", driver / 1000, driver % 1000 / 10,
                CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  if (error != cudaSuccess) return fail(ctx, FX_STATUS_UNAVAILABLE, "%s", cudaGetErrorString(error));
  if (s->device < 0 || s->device >= devices) return fail(ctx, FX_STATUS_UNAVAILABLE, "there are %d CUDA devices", devices);
  if (cudaGetDeviceProperties(&s->properties, s->device) != cudaSuccess || cudaSetDevice(s->device) != cudaSuccess)
    return fail(ctx, FX_STATUS_UNAVAILABLE, "%s", cudaGetErrorString(cudaGetLastError()));
  if (s->properties.major < 8)
    return fail(ctx, FX_STATUS_UNAVAILABLE, "%s has compute capability %d.%d, want 8.0 or newer", s->properties.name, s->properties.major,
                s->properties.minor);
  return FX_STATUS_OK;
}

void destroy(fx_ctx* ctx) {
  State* s = state(ctx);
  if (s->compute) cudaStreamSynchronize(s->compute);
  if (s->copy) cudaStreamSynchronize(s->copy);
  if (s->linear) close_linear(s->linear);
  if (s->scratch) cudaFreeAsync(s->scratch, s->compute);
  for (Slot& slot : s->slots) {
    if (slot.data) cudaFreeHost(slot.data);
    if (slot.ready) cudaEventDestroy(slot.ready);
  }
  if (s->order) cudaEventDestroy(s->order);
  if (s->compute) cudaStreamSynchronize(s->compute), cudaStreamDestroy(s->compute);
  if (s->copy) cudaStreamDestroy(s->copy);
  delete s;
}

fx_status create(fx_ctx* ctx, const char* name) {
  State* s = new State{};
  fx_status status = pick_device(ctx, name, s);
  if (status != FX_STATUS_OK) {
    delete s;
    return status;
  }
  s->poison = getenv("FLUXIR_POISON") != nullptr;
  s->sync_each_op = getenv("FLUXIR_SYNC") != nullptr;
  ctx->state = s;
  cudaMemPool_t pool;
  uint64_t keep = UINT64_MAX;
  cudaError_t error = cudaDeviceGetDefaultMemPool(&pool, s->device);
  if (error == cudaSuccess) error = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&s->compute, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&s->copy, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaEventCreateWithFlags(&s->order, cudaEventDisableTiming);
  for (Slot& slot : s->slots) {
    if (error == cudaSuccess) error = cudaMallocHost(reinterpret_cast<void**>(&slot.data), kSlotBytes);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&slot.ready, cudaEventDisableTiming);
  }
  if (error == cudaSuccess) return FX_STATUS_OK;
  status = check(ctx, error, s->properties.name);
  destroy(ctx);
  return status;
}

fx_status sync(fx_ctx* ctx) {
  cudaSetDevice(state(ctx)->device);
  return check(ctx, cudaStreamSynchronize(state(ctx)->compute), "ctx_sync");
}

fx_status get_info(fx_ctx* ctx, fx_ctx_info* info) {
  State* s = state(ctx);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  snprintf(info->device, sizeof info->device, "cuda:%d", s->device);
  snprintf(info->name, sizeof info->name, "%.95s", s->properties.name);
  snprintf(info->isa, sizeof info->isa, "sm_%d%d", s->properties.major, s->properties.minor);
  int64_t lt = linear_library_version();
  snprintf(info->libraries, sizeof info->libraries, "CUDA %d.%d, driver %d.%d, cuBLASLt %d.%d.%d", CUDART_VERSION / 1000,
           CUDART_VERSION % 1000 / 10, driver / 1000, driver % 1000 / 10, int(lt / 10000), int(lt / 100 % 100), int(lt % 100));
  return FX_STATUS_OK;
}

fx_status allocate(fx_ctx* ctx, void** data, int64_t bytes) {
  State* s = state(ctx);
  cudaSetDevice(s->device);
  if (!allocate_on(s, data, bytes))
    return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "buffer_create: %lld bytes of device memory not available, %lld in use", (long long)bytes,
                (long long)ctx->allocated);
  count(ctx, bytes);
  return FX_STATUS_OK;
}

void release(fx_ctx* ctx, void* data, int64_t bytes) {
  cudaSetDevice(state(ctx)->device);
  cudaFreeAsync(data, state(ctx)->compute);
  count(ctx, -bytes);
}

// The copy stream waits for the ops under way, since they may still use the memory, and later ops wait for the copy.
fx_status copy_to_device(fx_ctx* ctx, void* device, const void* host, int64_t bytes) {
  State* s = state(ctx);
  cudaSetDevice(s->device);
  require(cudaEventRecord(s->order, s->compute), "event");
  require(cudaStreamWaitEvent(s->copy, s->order, 0), "wait");
  for (int64_t at = 0; at < bytes; at += kSlotBytes) {
    Slot& slot = s->slots[s->next];
    s->next = (s->next + 1) % kSlots;
    int64_t n = std::min(kSlotBytes, bytes - at);
    require(cudaEventSynchronize(slot.ready), "staging");
    memcpy(slot.data, static_cast<const char*>(host) + at, size_t(n));
    require(cudaMemcpyAsync(static_cast<char*>(device) + at, slot.data, size_t(n), cudaMemcpyHostToDevice, s->copy), "copy");
    require(cudaEventRecord(slot.ready, s->copy), "event");
  }
  require(cudaEventRecord(s->order, s->copy), "event");
  require(cudaStreamWaitEvent(s->compute, s->order, 0), "wait");
  return FX_STATUS_OK;
}

// One piece is on its way while the host takes the piece before it.
fx_status copy_to_host(fx_ctx* ctx, void* host, const void* device, int64_t bytes) {
  State* s = state(ctx);
  cudaSetDevice(s->device);
  int64_t pieces = ceil_div(bytes, kSlotBytes);
  int first = s->next;
  for (int64_t i = 0; i <= pieces; i++) {
    if (i < pieces) {
      Slot& slot = s->slots[(first + i) % kSlots];
      int64_t n = std::min(kSlotBytes, bytes - i * kSlotBytes);
      require(cudaEventSynchronize(slot.ready), "staging");
      require(cudaMemcpyAsync(slot.data, static_cast<const char*>(device) + i * kSlotBytes, size_t(n), cudaMemcpyDeviceToHost, s->compute),
              "copy");
      require(cudaEventRecord(slot.ready, s->compute), "event");
    }
    if (i == 0) continue;
    Slot& slot = s->slots[(first + i - 1) % kSlots];
    require(cudaEventSynchronize(slot.ready), "copy");
    memcpy(static_cast<char*>(host) + (i - 1) * kSlotBytes, slot.data, size_t(std::min(kSlotBytes, bytes - (i - 1) * kSlotBytes)));
  }
  s->next = int((first + pieces) % kSlots);
  return FX_STATUS_OK;
}

// ---- the table ----

fx_ops ops;  // as the op files wrote it

// An op as the table shows it.
template <auto Op, class Signature>
struct Entry;
template <auto Op, class... A>
struct Entry<Op, fx_status (*)(fx_ctx*, A...)> {
  static inline const char* name;
  static fx_status call(fx_ctx* ctx, A... arguments) {
    State* s = state(ctx);
    cudaSetDevice(s->device);
    fx_status status = (ops.*Op)(ctx, arguments...);
    if (status != FX_STATUS_OK) return status;
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess && s->sync_each_op) error = cudaStreamSynchronize(s->compute);
    return check(ctx, error, name);
  }
};

fx_backend make() {
  fx_backend b{FX_ABI_VERSION, "cuda", create, destroy, sync, get_info, allocate, release, copy_to_device, copy_to_host, nullptr, {}};
#define FX_ADD(file) add_##file(&ops);
  FX_FILES(FX_ADD)
#undef FX_ADD
#define FX_ENTRY(op)                                    \
  Entry<&fx_ops::op, decltype(fx_ops::op)>::name = #op; \
  if (ops.op) b.ops.op = Entry<&fx_ops::op, decltype(fx_ops::op)>::call;
  FX_OP_LIST(FX_ENTRY)
#undef FX_ENTRY
  return b;
}

}  // namespace

cudaStream_t stream(fx_ctx* ctx) { return state(ctx)->compute; }

void* workspace(fx_ctx* ctx, int64_t bytes) {
  State* s = state(ctx);
  if (bytes > s->scratch_bytes) {
    if (s->scratch) cudaFreeAsync(s->scratch, s->compute);
    count(ctx, -s->scratch_bytes);
    s->scratch_bytes = 0;
    if (!allocate_on(s, &s->scratch, bytes)) throw OutOfMemory(bytes);
    s->scratch_bytes = bytes;
    count(ctx, bytes);
  }
  if (s->poison) cudaMemsetAsync(s->scratch, 0xff, size_t(s->scratch_bytes), s->compute);
  return s->scratch;
}

LinearState*& linear_state(fx_ctx* ctx) { return state(ctx)->linear; }

}  // namespace fx::cuda

extern "C" __attribute__((visibility("default"))) const fx_backend* fx_backend_table() {
  static const fx_backend table = fx::cuda::make();
  return &table;
}
