// backend_load.cpp: finds and opens the CUDA plugin, libfluxir_cuda.so, and shakes hands over the ABI version. The plugin is loaded once
// and never unloaded: its kernels and the driver below it stay registered with the process.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "backend.h"

namespace fx {
namespace {

constexpr const char* kLibrary = "libfluxir_cuda.so";

struct Plugin {
  const fx_backend* backend;
  char reason[400];  // why there is none
};

// Opens one file; a file that exists but does not load ends the search with its reason.
void* open_at(const char* path, char* reason, size_t capacity) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) snprintf(reason, capacity, "%s", dlerror());
  return library;
}

// FLUXIR_CUDA names the file. Else it is beside the program, in ../lib or ../build of the program's folder, or where the system's loader
// looks.
void* find(char* reason, size_t capacity) {
  if (const char* named = getenv("FLUXIR_CUDA")) return open_at(named, reason, capacity);
  char program[3072], path[3200];
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  if (n > 0) {
    program[n] = 0;
    char* slash = strrchr(program, '/');
    if (slash) *slash = 0;
    for (const char* folder : {"", "/../lib", "/../build"}) {
      snprintf(path, sizeof path, "%s%s/%s", program, folder, kLibrary);
      if (access(path, R_OK) == 0) return open_at(path, reason, capacity);
    }
  }
  return open_at(kLibrary, reason, capacity);
}

Plugin load() {
  Plugin plugin{};
  void* library = find(plugin.reason, sizeof plugin.reason);
  if (!library) return plugin;
  using Table = const fx_backend* (*)();
  Table table = reinterpret_cast<Table>(dlsym(library, "fx_backend_table"));
  if (!table) {
    snprintf(plugin.reason, sizeof plugin.reason, "%s has no fx_backend_table: it is no plugin of fluxir", kLibrary);
    return plugin;
  }
  const fx_backend* backend = table();
  if (backend->abi_version != FX_ABI_VERSION) {
    snprintf(plugin.reason, sizeof plugin.reason, "%s speaks ABI version %u, this program %u: build both from one tree", kLibrary,
             backend->abi_version, unsigned(FX_ABI_VERSION));
    return plugin;
  }
  plugin.backend = backend;
  return plugin;
}

}  // namespace

const fx_backend* cuda_backend(const char** reason) {
  static const Plugin plugin = load();  // the reason is kept: later attempts say the same
  *reason = plugin.reason;
  return plugin.backend;
}

}  // namespace fx
