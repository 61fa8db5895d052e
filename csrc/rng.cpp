// rng.cpp: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and Box-Muller, on the host: one seed gives
// the same noise on every backend. Counter = (block low, block high, stream low, stream high), key = (seed low, seed high).
#include <cmath>

#include "fluxir.h"

namespace {

void philox_block(uint32_t x[4], uint64_t seed, uint64_t stream, uint64_t block) {
  x[0] = uint32_t(block), x[1] = uint32_t(block >> 32), x[2] = uint32_t(stream), x[3] = uint32_t(stream >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t a = uint64_t(x[0]) * 0xD2511F53u, b = uint64_t(x[2]) * 0xCD9E8D57u;
    uint32_t y0 = uint32_t(b >> 32) ^ x[1] ^ k0, y2 = uint32_t(a >> 32) ^ x[3] ^ k1;
    x[0] = y0, x[1] = uint32_t(b), x[2] = y2, x[3] = uint32_t(a);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

// Two normals of two words; u = (x + 1/2) / 2^32 is never 0.
void box_muller(float n[2], uint32_t x0, uint32_t x1) {
  double u0 = (x0 + 0.5) * 0x1p-32, u1 = (x1 + 0.5) * 0x1p-32;
  double radius = std::sqrt(-2 * std::log(u0)), angle = 6.283185307179586 * u1;
  n[0] = float(radius * std::cos(angle));
  n[1] = float(radius * std::sin(angle));
}

}  // namespace

extern "C" {

void fx_philox_words(uint32_t* words, int64_t blocks, uint64_t seed, uint64_t stream, uint64_t block) {
  for (int64_t i = 0; i < blocks; i++) philox_block(words + 4 * i, seed, stream, block + uint64_t(i));
}

void fx_philox_normal(float* out, int64_t n, uint64_t seed, uint64_t stream, uint64_t offset) {
  uint64_t block = offset / 4;
  int64_t skip = int64_t(offset % 4);
  for (int64_t i = -skip; i < n; i += 4, block++) {
    uint32_t x[4];
    float normals[4];
    philox_block(x, seed, stream, block);
    box_muller(normals, x[0], x[1]);
    box_muller(normals + 2, x[2], x[3]);
    for (int64_t j = i < 0 ? -i : 0; j < 4 && i + j < n; j++) out[i + j] = normals[j];
  }
}

}  // extern "C"
