// backend_cuda.cpp: the CUDA backend's memory verbs and its table. One ctx is one card with one stream for all ops and the copies between
// them, and one for uploads that run beside the ops. Memory comes from the card's stream-ordered pool, so that freeing and allocating never
// wait; host data goes through pinned staging, so that a copy to the card returns as soon as the host's bytes are taken over. Only sync and
// copies to the host wait for the card.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fx_files.h"
#include "op.h"

namespace fx::cuda {

#define FX_DECLARE(file) void add_##file(fx_ops* ops);
FX_FILES(FX_DECLARE)
#undef FX_DECLARE

namespace {

constexpr int kSlots = 4;
constexpr int64_t kSlotBytes = 4 << 20;
constexpr int64_t kPieceBytes = 32 << 20;  // of an upload: a copy between ops waits for one at most

// Pinned staging memory; ready: the copy that used it last is over.
struct Slot {
  char* data;
  cudaEvent_t ready;
};

struct State {
  int device;
  cudaDeviceProp properties;
  cudaStream_t compute, copy;
  cudaEvent_t order;  // the ops that the copy stream waits for
  Slot slots[kSlots];
  int next;  // slot
  void* scratch;
  int64_t scratch_bytes;
  LinearState* linear;
  bool poison, sync_each_op, recording;
  std::vector<void*> released;  // while recording: freed at its end
};

// A recorded graph. It holds the workspace's address, so it is void when that has moved.
struct Graph {
  cudaGraphExec_t exec;
  void* scratch;
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

// What the pool keeps although nobody uses it.
int64_t reserve(State* s) {
  cudaMemPool_t pool;
  uint64_t reserved = 0, used = 0;
  if (cudaDeviceGetDefaultMemPool(&pool, s->device) == cudaSuccess &&
      cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved) == cudaSuccess &&
      cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used) == cudaSuccess && reserved > used)
    return int64_t(reserved - used);
  cudaGetLastError();
  return 0;
}

fx_status pick_device(fx_ctx* ctx, const char* name, State* s) {
  char* end = nullptr;
  s->device = name[4] == ':' ? int(strtol(name + 5, &end, 10)) : 0;
  if (end && (end == name + 5 || *end)) return fail(ctx, FX_STATUS_INVALID, "want cuda or cuda:N");
  int devices = 0, driver = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  cudaDriverGetVersion(&driver);
  if (error == cudaErrorInsufficientDriver && driver == 0)
    return fail(ctx, FX_STATUS_UNAVAILABLE, "there is no NVIDIA driver (libcuda.so.1)");
  if (error == cudaErrorInsufficientDriver)
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

// The status of what must not be called while a graph is recorded.
fx_status recordable(fx_ctx* ctx, const char* what) {
  if (!state(ctx)->recording) return FX_STATUS_OK;
  return fail(ctx, FX_STATUS_UNSUPPORTED, "%s: cannot be part of a graph", what);
}

fx_status sync(fx_ctx* ctx) {
  if (fx_status status = recordable(ctx, "ctx_sync")) return status;
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
  size_t available = 0, total = 0;
  cudaSetDevice(s->device);
  if (cudaMemGetInfo(&available, &total) == cudaSuccess) info->free = int64_t(available) + reserve(s);
  int64_t lt = linear_library_version();
  snprintf(info->libraries, sizeof info->libraries, "CUDA %d.%d, driver %d.%d, cuBLASLt %d.%d.%d", CUDART_VERSION / 1000,
           CUDART_VERSION % 1000 / 10, driver / 1000, driver % 1000 / 10, int(lt / 10000), int(lt / 100 % 100), int(lt % 100));
  return FX_STATUS_OK;
}

fx_status allocate(fx_ctx* ctx, void** data, int64_t bytes) {
  if (fx_status status = recordable(ctx, "buffer_create")) return status;
  State* s = state(ctx);
  cudaSetDevice(s->device);
  if (!allocate_on(s, data, bytes))
    return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "buffer_create: %lld bytes of device memory not available, %lld in use", (long long)bytes,
                (long long)ctx->allocated);
  count(ctx, bytes);
  return FX_STATUS_OK;
}

void release(fx_ctx* ctx, void* data, int64_t bytes) {
  State* s = state(ctx);
  count(ctx, -bytes);
  if (s->recording) return s->released.push_back(data);
  cudaSetDevice(s->device);
  cudaFreeAsync(data, s->compute);
}

fx_status copy_to_device(fx_ctx* ctx, void* device, const void* host, int64_t bytes) {
  if (fx_status status = recordable(ctx, "copy_to_device")) return status;
  State* s = state(ctx);
  cudaSetDevice(s->device);
  for (int64_t at = 0; at < bytes; at += kSlotBytes) {
    Slot& slot = s->slots[s->next];
    s->next = (s->next + 1) % kSlots;
    int64_t n = std::min(kSlotBytes, bytes - at);
    require(cudaEventSynchronize(slot.ready), "staging");
    memcpy(slot.data, static_cast<const char*>(host) + at, size_t(n));
    require(cudaMemcpyAsync(static_cast<char*>(device) + at, slot.data, size_t(n), cudaMemcpyHostToDevice, s->compute), "copy");
    require(cudaEventRecord(slot.ready, s->compute), "event");
  }
  return FX_STATUS_OK;
}

// One piece is on its way while the host takes the piece before it.
fx_status copy_to_host(fx_ctx* ctx, void* host, const void* device, int64_t bytes) {
  if (fx_status status = recordable(ctx, "copy_to_host")) return status;
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

// ---- uploads beside the ops ----

fx_status host_allocate(fx_ctx* ctx, void** host, int64_t bytes) {
  if (fx_status status = recordable(ctx, "host_create")) return status;
  cudaSetDevice(state(ctx)->device);
  if (cudaMallocHost(host, size_t(bytes)) == cudaSuccess) return FX_STATUS_OK;
  *host = nullptr;
  cudaGetLastError();
  return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "host_create: %lld bytes of page-locked host memory not available", (long long)bytes);
}

void host_release(fx_ctx* ctx, void* host, int64_t) {
  cudaSetDevice(state(ctx)->device);
  cudaFreeHost(host);
}

fx_status upload_start(fx_ctx* ctx, void** event, void* device, const void* host, int64_t bytes) {
  if (fx_status status = recordable(ctx, "upload_start")) return status;
  State* s = state(ctx);
  cudaSetDevice(s->device);
  cudaEvent_t done = static_cast<cudaEvent_t>(*event);
  if (!done) require(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "event");
  *event = done;
  require(cudaEventRecord(s->order, s->compute), "event");
  require(cudaStreamWaitEvent(s->copy, s->order, 0), "wait");
  for (int64_t at = 0; at < bytes; at += kPieceBytes)
    require(cudaMemcpyAsync(static_cast<char*>(device) + at, static_cast<const char*>(host) + at, size_t(std::min(kPieceBytes, bytes - at)),
                            cudaMemcpyHostToDevice, s->copy),
            "copy");
  require(cudaEventRecord(done, s->copy), "event");
  return FX_STATUS_OK;
}

fx_status upload_wait(fx_ctx* ctx, void* event) {
  if (fx_status status = recordable(ctx, "upload_wait")) return status;
  cudaSetDevice(state(ctx)->device);
  if (event) require(cudaStreamWaitEvent(state(ctx)->compute, static_cast<cudaEvent_t>(event), 0), "wait");
  return FX_STATUS_OK;
}

void upload_end(fx_ctx* ctx, void* event) {
  cudaSetDevice(state(ctx)->device);
  if (event) cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

// ---- graphs ----

// The mode lets other threads, which may have contexts of their own, go on allocating.
fx_status graph_begin(fx_ctx* ctx) {
  State* s = state(ctx);
  if (s->sync_each_op) return fail(ctx, FX_STATUS_UNSUPPORTED, "graph_begin: FLUXIR_SYNC is set");
  if (s->recording) return fail(ctx, FX_STATUS_INVALID, "graph_begin: a graph is being recorded already");
  cudaSetDevice(s->device);
  require(cudaStreamBeginCapture(s->compute, cudaStreamCaptureModeThreadLocal), "graph_begin");
  s->recording = true;
  return FX_STATUS_OK;
}

fx_status graph_end(fx_ctx* ctx, void** graph) {
  State* s = state(ctx);
  if (!s->recording) return fail(ctx, FX_STATUS_INVALID, "graph_end: no graph is being recorded");
  s->recording = false;
  cudaSetDevice(s->device);
  cudaGraph_t recorded = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaError_t error = cudaStreamEndCapture(s->compute, &recorded);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, recorded, 0);
  if (recorded) cudaGraphDestroy(recorded);
  for (void* data : s->released) cudaFreeAsync(data, s->compute);
  s->released.clear();
  if (error != cudaSuccess) {
    cudaGetLastError();
    return fail(ctx, FX_STATUS_UNSUPPORTED, "graph_end: %s", cudaGetErrorString(error));
  }
  *graph = new Graph{exec, s->scratch};
  return FX_STATUS_OK;
}

fx_status graph_launch(fx_ctx* ctx, void* graph) {
  State* s = state(ctx);
  Graph* g = static_cast<Graph*>(graph);
  if (fx_status status = recordable(ctx, "graph_launch")) return status;
  if (g->scratch != s->scratch) return fail(ctx, FX_STATUS_INVALID, "graph_launch: the workspace has moved since the graph was recorded");
  cudaSetDevice(s->device);
  return check(ctx, cudaGraphLaunch(g->exec, s->compute), "graph_launch");
}

// The graph may be running.
void graph_release(fx_ctx* ctx, void* graph) {
  State* s = state(ctx);
  Graph* g = static_cast<Graph*>(graph);
  cudaSetDevice(s->device);
  cudaStreamSynchronize(s->compute);
  cudaGraphExecDestroy(g->exec);
  delete g;
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

// ---- probe ----

// Buffers of a probe.
struct Room {
  fx_ctx* ctx;
  void* data = nullptr;
  Room(fx_ctx* c, int64_t bytes) : ctx(c) {
    if (!allocate_on(state(c), &data, bytes)) throw OutOfMemory(bytes);
  }
  ~Room() { cudaFreeAsync(data, state(ctx)->compute); }
};

// Seconds that one run of f takes, the shortest of those that fit into `seconds`; two at least.
template <class F>
double fastest(State* s, double seconds, F&& f) {
  cudaEvent_t from, to;
  require(cudaEventCreate(&from), "event");
  require(cudaEventCreate(&to), "event");
  double best = 1e30, total = 0;
  for (int run = 0; run < 2 || total < seconds; run++) {
    float ms = 0;
    require(cudaEventRecord(from, s->compute), "event");
    f();
    require(cudaEventRecord(to, s->compute), "event");
    require(cudaEventSynchronize(to), "probe");
    require(cudaEventElapsedTime(&ms, from, to), "event");
    total += std::max(1e-6, ms * 1e-3), best = std::min(best, std::max(1e-9, ms * 1e-3));
  }
  cudaEventDestroy(from), cudaEventDestroy(to);
  return best;
}

// The rate of a square product of cuBLASLt, f32 or bf16, of the largest side that is fast enough.
double probe_product(fx_ctx* ctx, fx_dtype dtype, double seconds) {
  double rate = 0;
  for (int64_t n = 256; n <= 8192; n *= 2) {
    int64_t bytes = n * n * (dtype == FX_DTYPE_F32 ? 4 : 2);
    Room x(ctx, bytes), w(ctx, bytes), y(ctx, bytes);
    require(cudaMemsetAsync(x.data, 0, size_t(bytes), stream(ctx)), "memset");
    require(cudaMemsetAsync(w.data, 0, size_t(bytes), stream(ctx)), "memset");
    auto square = [&](void* data) { return fx_tensor{data, dtype, 2, {n, n}, {n, 1}}; };
    fx_tensor tx = square(x.data), tw = square(w.data), ty = square(y.data);
    double t = fastest(state(ctx), n == 8192 ? seconds : 0,
                       [&] { ops.linear_forward(ctx, &ty, nullptr, &tx, nullptr, nullptr, &tw, nullptr, FX_ACT_NONE); });
    rate = std::max(rate, 2e-9 * double(n) * double(n) * double(n) / t);
    if (t > seconds / 4) break;
  }
  return rate;
}

// Bytes read and written by a copy on the card.
double probe_copy(fx_ctx* ctx, double seconds) {
  double rate = 0;
  for (int64_t bytes = 1 << 20; bytes <= 1 << 30; bytes *= 4) {
    Room from(ctx, bytes), to(ctx, bytes);
    require(cudaMemsetAsync(from.data, 0, size_t(bytes), stream(ctx)), "memset");
    double t = fastest(state(ctx), bytes == 1 << 30 ? seconds : 0,
                       [&] { require(cudaMemcpyAsync(to.data, from.data, size_t(bytes), cudaMemcpyDeviceToDevice, stream(ctx)), "copy"); });
    rate = 2e-9 * double(bytes) / t;  // of the largest: no cache holds it
    if (t > seconds / 4) break;
  }
  return rate;
}

// Rates that the card reaches through its vendor's library, which are lower than what its data sheet says.
fx_status probe(fx_ctx* ctx, fx_probe_kind kind, double seconds, double* rate) {
  if (kind == FX_PROBE_BF16) return fail(ctx, FX_STATUS_UNSUPPORTED, "probe: cuda multiplies bf16 in matrix units only");
  if (fx_status status = recordable(ctx, "probe")) return status;
  cudaSetDevice(state(ctx)->device);
  if (kind == FX_PROBE_TRIAD) *rate = probe_copy(ctx, seconds);
  else *rate = probe_product(ctx, kind == FX_PROBE_F32 ? FX_DTYPE_F32 : FX_DTYPE_BF16, seconds);
  return check(ctx, cudaGetLastError(), "probe");
}

fx_backend make() {
  fx_backend b{FX_ABI_VERSION, "cuda",         create,       destroy,   sync,          get_info,      allocate,
               release,        copy_to_device, copy_to_host, probe,     host_allocate, host_release,  upload_start,
               upload_wait,    upload_end,     graph_begin,  graph_end, graph_launch,  graph_release, {}};
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
    if (s->recording) throw std::runtime_error("the workspace would grow, which cannot be part of a graph");
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
