// probe.h: the CPU backend's fx_ctx_probe.
#pragma once
#include "cpu.h"

namespace fx {

fx_status cpu_probe(fx_ctx* ctx, Tier tier, fx_probe_kind kind, double seconds, double* rate);

}  // namespace fx
