// plugin.h: finds and opens a shared library of fluxir at run time: the CUDA backend, the MPI engine.
#pragma once
#include <cstddef>

namespace fx {

// dlopens `library`. The environment variable `variable` names the file; else it is beside the program, in ../lib or ../build of the
// program's folder, or where the system's loader looks. NULL with the reason where it does not load; a file that exists but does not load
// ends the search. Never unloaded.
void* open_plugin(const char* library, const char* variable, char* reason, size_t capacity);

}  // namespace fx
