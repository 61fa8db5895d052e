// tier.cpp: fills the op table of one tier from its op files; fx_files.h is CMake's list of csrc/*.cpp. Compiled once per tier, like them.
// No static-initializer registration: the linker drops it from a static library.
#include "fx_files.h"
#include "op.h"

namespace fx::FX_TIER {

#define FX_DECLARE(file) void add_##file(fx_ops* ops);
FX_FILES(FX_DECLARE)

void fill_ops(fx_ops* ops) {
#define FX_ADD(file) add_##file(ops);
  FX_FILES(FX_ADD)
}

}  // namespace fx::FX_TIER
