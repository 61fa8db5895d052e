// threads.h: the one thread pool is libgomp's, which oneDNN runs on too.
#pragma once
#include <immintrin.h>
#include <omp.h>

#include "backend.h"

namespace fx::FX_TIER {

// f(i) for i in [0, n), split in contiguous shares. Results must not depend on the split: reductions go over chunks whose number is fixed
// by the shape, never by ctx->threads. One thread runs the same machine code as many: a second, serial copy of the loop would be inlined
// anew and round otherwise where the compiler fuses other multiplications with additions.
template <class F>
inline void parallel_for(fx_ctx* ctx, int64_t n, const F& f) {
#pragma omp parallel num_threads(ctx->threads) if (n > 1 && ctx->threads > 1)
  {
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < n; i++) f(i);
    _mm_sfence();  // stores around the caches (vec.h) come before what follows
  }
}

// The same for iterations of unequal cost: taken one at a time.
template <class F>
inline void parallel_for_dynamic(fx_ctx* ctx, int64_t n, const F& f) {
#pragma omp parallel for num_threads(ctx->threads) schedule(dynamic, 1) if (n > 1 && ctx->threads > 1)
  for (int64_t i = 0; i < n; i++) f(i);
}

// Index of the calling thread inside parallel_for: for per-thread scratch. In [0, ctx->threads).
inline int thread_index() { return omp_get_thread_num(); }

}  // namespace fx::FX_TIER
