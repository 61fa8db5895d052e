// onednn.cpp: see onednn.h.
#include "onednn.h"

#include <dnnl.hpp>

namespace fx {

void onednn_limit(Tier tier) {
  dnnl_cpu_isa_t isa = dnnl_cpu_isa_all;
  if (tier == Tier::avx2) isa = dnnl_cpu_isa_avx2;
  if (tier == Tier::generic) isa = dnnl_cpu_isa_sse41;
  dnnl_set_max_cpu_isa(isa);  // refused after first use; then the first choice stays
}

void onednn_version(char* text, size_t capacity) {
  const dnnl_version_t* v = dnnl_version();
  snprintf(text, capacity, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}

}  // namespace fx
