// abi_comm.cpp: the C ABI of a group of processes: opens the engine, checks, forwards.
#include <dlfcn.h>

#include "abi.h"
#include "comm.h"
#include "plugin.h"

struct fx_comm {
  const fx_comm_engine* engine;
  void* state;
};

namespace {

constexpr const char* kLibrary = "libfluxir_mpi.so";

const fx_comm_engine* open_engine(char* message, size_t capacity) {
  void* library = fx::open_plugin(kLibrary, "FLUXIR_MPI", message, capacity);
  if (!library) return nullptr;
  using Table = const fx_comm_engine* (*)();
  Table table = reinterpret_cast<Table>(dlsym(library, "fx_comm_engine_table"));
  if (!table || table()->abi_version != FX_ABI_VERSION) {
    snprintf(message, capacity, "%s is not of this program: build both from one tree", kLibrary);
    return nullptr;
  }
  return table();
}

}  // namespace

extern "C" {

fx_status fx_comm_create(fx_comm** comm, fx_comm_info* info, char* message, size_t capacity) {
  if (!comm || !info || !message || capacity == 0) return FX_STATUS_INVALID;
  *comm = nullptr;
  message[0] = 0;
  const fx_comm_engine* engine = open_engine(message, capacity);
  if (!engine) return FX_STATUS_UNAVAILABLE;
  fx_comm* c = new (std::nothrow) fx_comm{engine, nullptr};
  if (!c) return FX_STATUS_OUT_OF_MEMORY;
  fx_status status = engine->create(&c->state, info, message, capacity);
  if (status != FX_STATUS_OK) {
    delete c;
    return status;
  }
  *comm = c;
  return FX_STATUS_OK;
}

void fx_comm_destroy(fx_comm* comm) {
  if (!comm) return;
  comm->engine->destroy(comm->state);
  delete comm;
}

fx_status fx_comm_allreduce_start(fx_comm* comm, fx_ctx* ctx, const fx_tensor* tensors, int64_t count) {
  if (!ctx) return FX_STATUS_INVALID;
  fx::Check check(ctx, "comm_allreduce");
  check.that(comm && tensors && count > 0, "no comm, or no tensors");
  for (int64_t i = 0; comm && tensors && i < count; i++)
    check.rank("tensor", &tensors[i], fx::kF32, 1, FX_MAX_RANK).contiguous("tensor", &tensors[i]);
  bool host = strcmp(ctx->backend->name, "cpu") == 0;
  return check.run(host, [&] { return comm->engine->allreduce_start(comm->state, tensors, count, ctx->message, sizeof ctx->message); });
}

fx_status fx_comm_wait(fx_comm* comm, fx_ctx* ctx) {
  if (!comm || !ctx) return FX_STATUS_INVALID;
  return fx::fenced(ctx, "comm_wait", [&] { return comm->engine->wait(comm->state, ctx->message, sizeof ctx->message); });
}

fx_status fx_comm_broadcast(fx_comm* comm, void* host, int64_t bytes, char* message, size_t capacity) {
  if (!comm || !host || bytes < 0 || !message || capacity == 0) return FX_STATUS_INVALID;
  return bytes == 0 ? fx_status(FX_STATUS_OK) : comm->engine->broadcast(comm->state, host, bytes, message, capacity);
}

void fx_comm_abort(fx_comm* comm, int32_t code) {
  if (comm) comm->engine->abort(comm->state, code);
}

}  // extern "C"
