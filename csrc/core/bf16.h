// bf16.h: how ops of ours multiply bf16 numbers on this processor. Chosen in cpuid.cpp, once a process.
#pragma once

namespace fx {

// Widened to f32; in pairs (vdpbf16ps); on AMX tiles (tdpbf16ps); on a scalar stand-in of the tiles, for tests alone.
enum class Bf16 { widen, dot, tiles, stand_in };

// The fastest of them: tiles, where the processor and the kernel have them; else dot on AMD alone, where vdpbf16ps does twice the
// multiplications of an f32 product, while on Intel's Xeons it does half as many. FLUXIR_BF16 = widen | dot | tiles | stand-in chooses one
// that this machine can run; others are ignored.
Bf16 detect_bf16();

// Whether this process may use AMX tiles with bf16: Linux gives it their state on request only.
bool tiles_allowed();

// Whether oneDNN multiplies matrices (linear), not csrc/gemm: FLUXIR_GEMM = own | onednn, without it for bf16 where Bf16::dot is the
// fastest.
bool onednn_multiplies(bool bf16);

}  // namespace fx
