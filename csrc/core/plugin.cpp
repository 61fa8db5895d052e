// plugin.cpp: the search for shared libraries of fluxir.
#include "plugin.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fx {
namespace {

void* open_at(const char* path, char* reason, size_t capacity) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) snprintf(reason, capacity, "%s", dlerror());
  return library;
}

}  // namespace

void* open_plugin(const char* library, const char* variable, char* reason, size_t capacity) {
  if (const char* named = getenv(variable)) return open_at(named, reason, capacity);
  char program[3072], path[3200];
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  if (n > 0) {
    program[n] = 0;
    char* slash = strrchr(program, '/');
    if (slash) *slash = 0;
    for (const char* folder : {"", "/../lib", "/../build"}) {
      snprintf(path, sizeof path, "%s%s/%s", program, folder, library);
      if (access(path, R_OK) == 0) return open_at(path, reason, capacity);
    }
  }
  return open_at(library, reason, capacity);
}

}  // namespace fx
