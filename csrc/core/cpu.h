// cpu.h: plumbing shared by the CPU tiers: workspace, tier choice, oneDNN handles live behind it.
#pragma once
#include "backend.h"

namespace fx {

enum class Tier { generic, avx2, avx512 };

// The best tier this processor and operating system can run, capped by FLUXIR_ISA. avx512 needs F, BW, DQ, VL and BF16.
Tier detect_tier();
const char* tier_name(Tier tier);

// Scratch of the ctx for one op: 64-byte aligned, grows, is kept until the ctx is destroyed. One call per op: a second call invalidates the
// first. Contents undefined. Throws std::bad_alloc, which abi.cpp turns into FX_STATUS_OUT_OF_MEMORY.
void* workspace(fx_ctx* ctx, int64_t bytes);

// What workspace() throws on the dry device (backend_dry.cpp) once it has counted the bytes.
struct DryWorkspace {};

// Adds to the bytes that ctx has allocated.
void count(fx_ctx* ctx, int64_t bytes);

// create() of the dry device: the CPU's, with a workspace that is only counted.
fx_status dry_create(fx_ctx* ctx, const char* device);

// The prepared oneDNN primitives of the ctx: see onednn.h.
struct OnednnCache;
OnednnCache* onednn(fx_ctx* ctx);

// One filled table per tier (core/tier.cpp is compiled once for each).
namespace generic {
void fill_ops(fx_ops* ops);
}
namespace avx2 {
void fill_ops(fx_ops* ops);
}
namespace avx512 {
void fill_ops(fx_ops* ops);
}

}  // namespace fx
