// tiles.h: the products of attention on AMX tiles (tdpbf16ps): 16 x 16 f32 += 16 x 32 bf16 times 32 x 16 bf16. Always two by two tiles of
// c: four products for four loads. The interface is that of Registers (products.h); panels are plain rows, D is padded to tiles.
#pragma once
#include "products.h"

namespace fx::FX_TIER {

#if defined(__AVX512BF16__)

// The instructions, in assembly: GCC 12's intrinsics do not tell the compiler that they touch memory.
struct TileUnit {
  TileUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~TileUnit() { asm volatile("tilerelease" ::: "memory"); }
  TileUnit(const TileUnit&) = delete;
  template <int T>
  static FX_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static FX_INLINE void load(const void* p, int64_t bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(bytes), "i"(T) : "memory");
  }
  template <int T>
  static FX_INLINE void store(void* p, int64_t bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(bytes), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  static FX_INLINE void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

// The same in scalar arithmetic, for tests on processors without tiles: shapes, order and rounding of the manual's pseudocode (Intel SDM,
// TDPBF16PS: the even and the odd products of a row are summed apart, fused, then added). Denormal numbers count as zeros there always;
// here because FlushDenormals is alive.
struct TileStandIn {
  template <int T>
  static void zero() {
    memset(tile[T], 0, sizeof tile[T]);
  }
  template <int T>
  static void load(const void* p, int64_t bytes) {
    for (int r = 0; r < 16; r++) memcpy(tile[T][r], static_cast<const char*>(p) + r * bytes, 64);
  }
  template <int T>
  static void store(void* p, int64_t bytes) {
    for (int r = 0; r < 16; r++) memcpy(static_cast<char*>(p) + r * bytes, tile[T][r], 64);
  }
  template <int C, int A, int B>
  static void multiply_add() {
    for (int m = 0; m < 16; m++)
      for (int n = 0; n < 16; n++) {
        float even = 0, odd = 0, c;
        for (int k = 0; k < 16; k++) {
          even = __builtin_fmaf(number(tile[A][m][k] << 16), number(tile[B][k][n] << 16), even);
          odd = __builtin_fmaf(number(tile[A][m][k] & 0xffff0000), number(tile[B][k][n] & 0xffff0000), odd);
        }
        memcpy(&c, &tile[C][m][n], 4);
        c += even + odd;
        memcpy(&tile[C][m][n], &c, 4);
      }
  }

 private:
  static float number(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
  static inline thread_local uint32_t tile[8][16][16];
};

template <class Unit>
struct Tiles {
  typedef pair E;
  static constexpr int G = 2;
  static constexpr int R = 32;
  static constexpr int kUnit = 32, kUnits = 2;
  static constexpr int kColumns = 32;
  static constexpr bool kPadded = true;
  typedef Unit Scope;

  // Tiles 0 to 3, c [32][32], += a b for n elements, a multiple of 16.
  static FX_INLINE void multiply(int64_t n, const pair* a, int64_t a_step, const pair* b, int64_t b_step) {
    for (int64_t t = 0; t < n; t += 16, a += 16, b += 16 * b_step) {
      Unit::template load<4>(a, a_step * 4);
      Unit::template load<6>(b, b_step * 4);
      Unit::template multiply_add<0, 4, 6>();
      Unit::template load<7>(b + 16, b_step * 4);
      Unit::template multiply_add<1, 4, 7>();
      Unit::template load<5>(a + 16 * a_step, a_step * 4);
      Unit::template multiply_add<2, 5, 6>();
      Unit::template multiply_add<3, 5, 7>();
    }
  }
  static FX_INLINE void load_c(const float* c, int64_t step) {
    Unit::template load<0>(c, step * 4);
    Unit::template load<1>(c + 16, step * 4);
    Unit::template load<2>(c + 16 * step, step * 4);
    Unit::template load<3>(c + 16 * step + 16, step * 4);
  }
  static FX_INLINE void store_c(float* c, int64_t step) {
    Unit::template store<0>(c, step * 4);
    Unit::template store<1>(c + 16, step * 4);
    Unit::template store<2>(c + 16 * step, step * 4);
    Unit::template store<3>(c + 16 * step + 16, step * 4);
  }

  template <int N, class F>
  static FX_INLINE void product(int64_t n, const pair* a, const pair* b, int64_t b_step, const F& finish) {
    alignas(64) float c[32 * 32];
    for (int j = 0; j < N; j += 2) {
      Unit::template zero<0>();
      Unit::template zero<1>();
      Unit::template zero<2>();
      Unit::template zero<3>();
      multiply(n, a, n, b + j * W, b_step);
      store_c(c, 32);
      for (int i = 0; i < R; i++) {
        finish(i, j, fx::FX_TIER::load(c + i * 32));
        finish(i, j + 1, fx::FX_TIER::load(c + i * 32 + W));
      }
    }
  }

  template <int N>
  static FX_INLINE void add_panel(float* c, int64_t c_step, const vf (&alpha)[N], int64_t n, const pair* a, const pair* b, int64_t b_step) {
    for (int i = 0; i < R; i++)
      for (int j = 0; j < N; j++) {
        float* p = c + i * c_step + j * W;
        fx::FX_TIER::store(p, fx::FX_TIER::load(p) * alpha[j]);
      }
    for (int j = 0; j < N; j += 2) {
      load_c(c + j * W, c_step);
      multiply(n, a, n, b + j * W, b_step);
      store_c(c + j * W, c_step);
    }
  }

  template <int Step>
  static FX_INLINE void add_rows(float* c, int64_t c_step, int64_t n, const pair* a, const pair* b, int64_t b_step) {
    load_c(c, c_step);
    multiply(n, a, Step, b, b_step);
    store_c(c, c_step);
  }
};

#endif

}  // namespace fx::FX_TIER
