// comm.h: what an engine of fx_comm provides. libfluxir_mpi.so exports its table as `const fx_comm_engine* fx_comm_engine_table()`.
#pragma once
#include "../fluxir.h"

// Functions write the reason of a failure into message. tensors are valid only during the call, their elements until wait.
struct fx_comm_engine {
  uint32_t abi_version;  // FX_ABI_VERSION the engine was compiled with
  fx_status (*create)(void** state, fx_comm_info* info, char* message, size_t capacity);
  void (*destroy)(void* state);
  fx_status (*allreduce_start)(void* state, const fx_tensor* tensors, int64_t count, char* message, size_t capacity);
  fx_status (*wait)(void* state, char* message, size_t capacity);
  fx_status (*broadcast)(void* state, void* host, int64_t bytes, char* message, size_t capacity);
  void (*abort)(void* state, int32_t code);
};
