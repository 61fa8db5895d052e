// backend_load.cpp: opens the CUDA plugin, libfluxir_cuda.so, and shakes hands over the ABI version. The plugin is loaded once
// and never unloaded: its kernels and the driver below it stay registered with the process.
#include <dlfcn.h>

#include "backend.h"
#include "plugin.h"

namespace fx {
namespace {

constexpr const char* kLibrary = "libfluxir_cuda.so";

struct Plugin {
  const fx_backend* backend;
  char reason[400];  // why there is none
};

Plugin load() {
  Plugin plugin{};
  void* library = open_plugin(kLibrary, "FLUXIR_CUDA", plugin.reason, sizeof plugin.reason);
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
