// backend_cpu.cpp: the CPU backend's memory verbs and its table, filled from the tier that cpuid.cpp chose.
#include <sched.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu.h"
#include "onednn.h"
#include "probe.h"

namespace fx {
namespace {

struct CpuState {
  Tier tier;
  void* scratch;
  int64_t scratch_bytes;
  bool poison, dry;
  OnednnCache* onednn;
  char processor[96];
};

CpuState* state(fx_ctx* ctx) { return static_cast<CpuState*>(ctx->state); }

// Large memory is asked for in pages of 2 MB: rows of one head are some KB apart, each in a page of its own where pages have 4 KB. Not
// rounded up, so that the address sanitizer sees the last byte.
void* aligned(int64_t bytes) {
  constexpr size_t page = size_t(2) << 20;
  bool large = bytes >= int64_t(4 * page);
  void* data = nullptr;
  if (posix_memalign(&data, large ? page : 64, size_t(bytes)) != 0) return nullptr;
  if (large) madvise(data, size_t(bytes) / page * page, MADV_HUGEPAGE);  // advice: a failure changes nothing
  return data;
}

void read_processor(char* name, size_t capacity) {
  snprintf(name, capacity, "unknown processor");
  FILE* f = fopen("/proc/cpuinfo", "r");
  if (!f) return;
  char line[256];
  while (fgets(line, sizeof line, f)) {
    if (strncmp(line, "model name", 10) != 0) continue;
    const char* value = strchr(line, ':');
    if (!value) break;
    snprintf(name, capacity, "%s", value + 2);
    name[strcspn(name, "\n")] = 0;
    break;
  }
  fclose(f);
}

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int n = CPU_COUNT(&set);
  return n > 0 ? n : 1;
}

fx_status create(fx_ctx* ctx, const char*) {
  CpuState* s = new CpuState{detect_tier(), nullptr, 0, getenv("FLUXIR_POISON") != nullptr, false, nullptr, {}};
  read_processor(s->processor, sizeof s->processor);
  ctx->state = s;
  if (ctx->threads == 0) ctx->threads = available_cores();
  onednn_limit(s->tier);
  s->onednn = onednn_open();
  return FX_STATUS_OK;
}

void destroy(fx_ctx* ctx) {
  onednn_close(state(ctx)->onednn);
  free(state(ctx)->scratch);
  delete state(ctx);
}

fx_status sync(fx_ctx*) { return FX_STATUS_OK; }

fx_status get_info(fx_ctx* ctx, fx_ctx_info* info) {
  snprintf(info->device, sizeof info->device, "cpu");
  snprintf(info->name, sizeof info->name, "%s", state(ctx)->processor);
  snprintf(info->isa, sizeof info->isa, "%s", tier_name(state(ctx)->tier));
  onednn_version(info->libraries, sizeof info->libraries);
  return FX_STATUS_OK;
}

fx_status allocate(fx_ctx* ctx, void** data, int64_t bytes) {
  *data = aligned(bytes);
  if (!*data) return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "buffer_create: %lld bytes of host memory not available", (long long)bytes);
  count(ctx, bytes);
  return FX_STATUS_OK;
}

void release(fx_ctx* ctx, void* data, int64_t bytes) {
  free(data);
  count(ctx, -bytes);
}

fx_status copy(fx_ctx*, void* to, const void* from, int64_t bytes) {
  memcpy(to, from, size_t(bytes));
  return FX_STATUS_OK;
}

fx_status host_allocate(fx_ctx* ctx, void** host, int64_t bytes) {
  *host = aligned(bytes);
  if (!*host) return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "host_create: %lld bytes of host memory not available", (long long)bytes);
  return FX_STATUS_OK;
}

void host_release(fx_ctx*, void* host, int64_t) { free(host); }

// There is nothing beside which it could run: the copy is over when start returns.
fx_status upload_start(fx_ctx*, void**, void* device, const void* host, int64_t bytes) {
  memcpy(device, host, size_t(bytes));
  return FX_STATUS_OK;
}

fx_status upload_wait(fx_ctx*, void*) { return FX_STATUS_OK; }

void upload_end(fx_ctx*, void*) {}

fx_status probe(fx_ctx* ctx, fx_probe_kind kind, double seconds, double* rate) {
  return cpu_probe(ctx, state(ctx)->tier, kind, seconds, rate);
}

fx_backend make(Tier tier) {
  fx_backend b{FX_ABI_VERSION, "cpu",        create,       destroy,     sync,       get_info, allocate, release, copy,    copy, probe,
               host_allocate,  host_release, upload_start, upload_wait, upload_end, nullptr,  nullptr,  nullptr, nullptr, {}};
  switch (tier) {
    case Tier::generic: generic::fill_ops(&b.ops); break;
    case Tier::avx2: avx2::fill_ops(&b.ops); break;
    case Tier::avx512: avx512::fill_ops(&b.ops); break;
  }
  return b;
}

void grow(fx_ctx* ctx, CpuState* s, int64_t bytes) {
  free(s->scratch);
  count(ctx, -s->scratch_bytes);
  s->scratch_bytes = 0;
  s->scratch = aligned(bytes);
  if (!s->scratch) throw std::bad_alloc();
  s->scratch_bytes = bytes;
  count(ctx, bytes);
}

// Counts what grow would take.
void grow_dry(fx_ctx* ctx, CpuState* s, int64_t bytes) {
  count(ctx, -s->scratch_bytes);
  count(ctx, bytes);
  s->scratch_bytes = bytes;
}

}  // namespace

void count(fx_ctx* ctx, int64_t bytes) {
  ctx->allocated += bytes;
  if (ctx->allocated > ctx->peak) ctx->peak = ctx->allocated;
}

fx_status dry_create(fx_ctx* ctx, const char* device) {
  fx_status status = create(ctx, device);
  state(ctx)->dry = true;
  return status;
}

void* workspace(fx_ctx* ctx, int64_t bytes) {
  CpuState* s = state(ctx);
  if (s->dry) {
    if (bytes > s->scratch_bytes) grow_dry(ctx, s, bytes);
    throw DryWorkspace{};
  }
  if (bytes > s->scratch_bytes) grow(ctx, s, bytes);
  if (s->poison) memset(s->scratch, 0xff, size_t(s->scratch_bytes));
  return s->scratch;
}

OnednnCache* onednn(fx_ctx* ctx) { return state(ctx)->onednn; }

const fx_backend* cpu_backend() {
  static const fx_backend backends[] = {make(Tier::generic), make(Tier::avx2), make(Tier::avx512)};
  return &backends[int(detect_tier())];
}

}  // namespace fx
