// probe.cpp: what the processor can do at most, measured: multiply-adds in registers, products of tiles, bandwidth of memory. kbench's
// percentages refer to it. Compiled without ISA flags; each loop names its own target.
#include "probe.h"

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

#include "bf16.h"

namespace fx {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

constexpr int kChains = 12;           // independent sums: more than latency times throughput of any multiply-add
constexpr int64_t kRounds = 1 << 14;  // of one timed piece, some tens of microseconds

// The loops return the floating-point operations they did. `asm` keeps the sums in registers and alive.
#define FX_CHAINS(init, step)           \
  for (auto& s : sum) s = init;         \
  for (int64_t i = 0; i < kRounds; i++) \
    for (auto& s : sum) {               \
      s = step;                         \
      __asm__ volatile("" : "+v"(s));   \
    }

double f32_generic() {
  __m128 sum[kChains], x = _mm_set1_ps(0.5f);
  FX_CHAINS(x, _mm_add_ps(_mm_mul_ps(s, x), x))
  return double(kRounds) * kChains * 4 * 2;
}

__attribute__((target("avx2,fma"))) double f32_avx2() {
  __m256 sum[kChains], x = _mm256_set1_ps(0.5f);
  FX_CHAINS(x, _mm256_fmadd_ps(s, x, x))
  return double(kRounds) * kChains * 8 * 2;
}

__attribute__((target("avx512f"))) double f32_avx512() {
  __m512 sum[kChains], x = _mm512_set1_ps(0.5f);
  FX_CHAINS(x, _mm512_fmadd_ps(s, x, x))
  return double(kRounds) * kChains * 16 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_dot() {
  __m512 sum[kChains];
  __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f003f00);  // pairs of 0.5
  FX_CHAINS(_mm512_setzero_ps(), _mm512_dpbf16_ps(s, x, x))
  return double(kRounds) * kChains * 32 * 2;
}
#undef FX_CHAINS

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four tiles of sums, two of each factor: 16×16 sums of 32 products each.
__attribute__((target("amx-tile,amx-bf16"))) double bf16_tiles() {
  static const TileConfig config;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  constexpr int64_t rounds = kRounds / 8;
  for (int64_t i = 0; i < rounds; i++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return double(rounds) * 4 * 16 * 16 * 32 * 2;
}

// Operations per nanosecond of f on all threads: each repeats it for the given seconds and counts.
double rate_of(int threads, double seconds, double (*f)()) {
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    f();  // wakes the vector units
#pragma omp barrier
    const double start = now();
    double done = 0, elapsed = 0;
    while (elapsed < seconds) {
      done += f();
      elapsed = now() - start;
    }
    total += done / elapsed;
  }
  return total / 1e9;
}

void triad_plain(float* a, const float* b, const float* c, int64_t n) {
  for (int64_t i = 0; i < n; i++) a[i] = b[i] + 0.5f * c[i];
}

void triad_streaming(float* a, const float* b, const float* c, int64_t n) {
  const __m128 half = _mm_set1_ps(0.5f);
  for (int64_t i = 0; i < n; i += 4) _mm_stream_ps(a + i, _mm_add_ps(_mm_load_ps(b + i), _mm_mul_ps(half, _mm_load_ps(c + i))));
  _mm_sfence();
}

// GB/s of a = b + c/2 over three arrays that no cache holds, the better of plain and streaming stores: 12 bytes an element.
double triad(int threads, double seconds) {
  const int64_t cache = std::max<int64_t>(0, sysconf(_SC_LEVEL3_CACHE_SIZE));
  const int64_t n = std::clamp<int64_t>(cache / 2, int64_t(64) << 20, int64_t(512) << 20) / 4 / threads / 16 * 16;  // a thread's elements
  std::unique_ptr<float, void (*)(void*)> memory(static_cast<float*>(aligned_alloc(64, size_t(3 * n * threads * 4))), free);
  if (!memory) throw std::bad_alloc();
  double best = 0;
#pragma omp parallel num_threads(threads)
  {
    float* a = memory.get() + 3 * n * omp_get_thread_num();
    std::fill_n(a, 3 * n, 1.0f);
    for (auto pass : {triad_plain, triad_streaming}) {
      const double first = now();
      for (bool more = true; more;) {
#pragma omp barrier
        const double start = now();
        pass(a, a + n, a + 2 * n, n);
#pragma omp barrier
#pragma omp single copyprivate(more)
        {
          best = std::max(best, 12.0 * double(n) * threads / 1e9 / (now() - start));
          more = now() - first < seconds / 2;
        }
      }
    }
  }
  return best;
}

}  // namespace

fx_status cpu_probe(fx_ctx* ctx, Tier tier, fx_probe_kind kind, double seconds, double* rate) {
  double (*loop)() = nullptr;
  switch (kind) {
    case FX_PROBE_F32: loop = tier == Tier::generic ? f32_generic : tier == Tier::avx2 ? f32_avx2 : f32_avx512; break;
    case FX_PROBE_BF16: loop = tier >= Tier::avx512 ? bf16_dot : nullptr; break;
    case FX_PROBE_MATRIX: loop = tier >= Tier::avx512 && tiles_allowed() ? bf16_tiles : nullptr; break;
    case FX_PROBE_TRIAD: *rate = triad(ctx->threads, seconds); return FX_STATUS_OK;
  }
  if (!loop) return fail(ctx, FX_STATUS_UNSUPPORTED, "probe: tier %s of this processor has no such unit", tier_name(tier));
  *rate = rate_of(ctx->threads, seconds, loop);
  return FX_STATUS_OK;
}

}  // namespace fx
