// cpuid.cpp: chooses the CPU tier. Compiled without ISA flags, so that the choice itself cannot hit an illegal instruction.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

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

}  // namespace fx
