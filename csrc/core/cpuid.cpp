// cpuid.cpp: chooses the CPU tier. Compiled without ISA flags, so that the choice itself cannot hit an illegal instruction.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "bf16.h"
#include "cpu.h"

namespace fx {

const char* tier_name(Tier tier) {
  switch (tier) {
    case Tier::generic: return "generic";
    case Tier::avx2: return "avx2";
    case Tier::avx512: return "avx512";
  }
  return "?";
}

Tier detect_tier() {
  __builtin_cpu_init();
  Tier best = Tier::generic;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Tier::avx2;
  if (best == Tier::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16"))
    best = Tier::avx512;
  const char* cap = getenv("FLUXIR_ISA");
  if (!cap) return best;
  for (Tier tier : {Tier::generic, Tier::avx2})
    if (strcmp(cap, tier_name(tier)) == 0 && tier < best) return tier;
  return best;
}

bool tiles_allowed() {
  static const bool allowed = [] {
    constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;       // amx_tile, amx_bf16: EDX of leaf 7
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kBf16) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
}

namespace {

Bf16 choose_bf16() {
  if (detect_tier() != Tier::avx512) return Bf16::widen;
  const char* wish = getenv("FLUXIR_BF16");
  auto wants = [&](const char* name) { return wish && strcmp(wish, name) == 0; };
  if (wants("widen")) return Bf16::widen;
  if (wants("dot")) return Bf16::dot;
  if (wants("stand-in")) return Bf16::stand_in;
  if (tiles_allowed()) return Bf16::tiles;
  return __builtin_cpu_is("amd") ? Bf16::dot : Bf16::widen;
}

}  // namespace

Bf16 detect_bf16() {
  static const Bf16 choice = choose_bf16();
  return choice;
}

bool onednn_multiplies(bool bf16) {
  static const char* wish = getenv("FLUXIR_GEMM");
  if (wish && strcmp(wish, "own") == 0) return false;
  if (wish && strcmp(wish, "onednn") == 0) return true;
  return bf16 && detect_bf16() == Bf16::dot;
}

}  // namespace fx
