// mma.cuh: what attention and conv2d are made of: tiles in shared memory that are read without bank conflicts, asynchronous copies into
// them, and products of tiles by one warp. bf16 goes to the tensor cores (mma.sync m16n8k16, f32 accumulators), f32 to the FMA units: exact
// f32 in the same layout of registers, so a kernel is written once for both.
//
// Fragments. A warp holds 16 rows x 8 columns of f32 as c[4] per lane, in the layout of mma.sync: with g = lane / 4 and t = lane % 4,
// c[0], c[1] are row g, columns 2t, 2t + 1, and c[2], c[3] the same of row g + 8. Arrays [M][N][4] are 16·M rows and 8·N columns.
#pragma once
#include "core/device.cuh"

namespace fx::cuda {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

__device__ inline int lane_id() { return int(threadIdx.x) & 31; }

// 2^x within 2 ulp, denormal results are 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- asynchronous copies ----------------------------------------------------------------------------------------------------

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 16 bytes, both sides aligned to 16; zeros where not valid (src must be an address all the same).
__device__ inline void cp_async16(void* dst, const void* src, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void cp_async4(void* dst, const void* src, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 4 : 0) : "memory");
}
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's groups are on their way. The other threads' copies are visible after a barrier.
template <int Pending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- tiles ------------------------------------------------------------------------------------------------------------------

template <class T>
constexpr int kUnit = 16 / int(sizeof(T));  // elements in 16 bytes

// Rows of Cols elements in shared memory. The 16-byte units of a row are permuted (xor) so that eight lanes that read one unit of eight
// rows, or of every second of eight, meet eight different groups of banks.
template <class T, int Cols>
struct Tile {
  static constexpr int kPitch = Cols * int(sizeof(T)), kUnits = kPitch / 16;
  static_assert(kPitch == 64 || kPitch % 128 == 0, "a row is 64 bytes or a multiple of 128");
  char* base;

  __device__ char* at(int row, int unit) const { return base + row * kPitch + ((unit ^ (kPitch == 64 ? (row >> 1) & 3 : row & 7)) << 4); }
};

// Fills a unit of a tile with `valid` elements of src, of any alignment, and zeros.
template <class T>
__device__ inline void load_unit(char* dst, const T* src, int valid) {
  uint32_t u[4] = {};
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < valid) u[e] = __float_as_uint(src[e]);
  } else {
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (e < valid) u[e / 2] |= uint32_t(__bfloat16_as_ushort(src[e])) << (e % 2 * 16);
  }
  *reinterpret_cast<uint4*>(dst) = make_uint4(u[0], u[1], u[2], u[3]);
}

// ---- products ---------------------------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements; lanes 8i..8i+7 address the rows of matrix i.
__device__ inline void ldmatrix(uint32_t (&r)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

// c += a b: 16x16 times 16x8.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b over K, 16 at a time: a_at(m, k) and b_at(n, k) are where a lane's row of the fragments begins that load() is to fetch.
template <int K, int M, int N, class Load, class A, class B>
__device__ inline void product(float (&c)[M][N][4], const Load& load, const A& a_at, const B& b_at) {
  static_assert(N % 2 == 0 && K % 16 == 0);
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) load(fa[m], a_at(m, k));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[4];
      load(fb, b_at(n, k));
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma(c[m][n], fa[m], fb[0], fb[1]);
        mma(c[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

// c[m][n] += sum over k of a[row_a + m][k] · b[row_b + n][k], k < K: both tiles are contiguous along k.
template <int K, int M, int N, int Ca, int Cb>
__device__ inline void product_nt(float (&c)[M][N][4], Tile<bf16, Ca> a, int row_a, Tile<bf16, Cb> b, int row_b) {
  int lane = lane_id();
  product<K>(
      c, [](uint32_t(&r)[4], const char* row) { ldmatrix(r, row); },
      [&](int m, int k) { return a.at(row_a + 16 * m + (lane & 15), k / 8 + (lane >> 4)); },
      [&](int n, int k) { return b.at(row_b + 8 * n + (lane & 7) + (lane >> 4) * 8, k / 8 + (lane >> 3 & 1)); });
}

template <int K, int M, int N, int Ca, int Cb>
__device__ inline void product_nt(float (&c)[M][N][4], Tile<float, Ca> a, int row_a, Tile<float, Cb> b, int row_b) {
  int g = lane_id() >> 2, t = lane_id() & 3;
#pragma unroll 2
  for (int k = 0; k < K; k += 4) {
    float4 fa[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) fa[m][h] = *reinterpret_cast<const float4*>(a.at(row_a + 16 * m + 8 * h + g, k / 4));
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float4 y = *reinterpret_cast<const float4*>(b.at(row_b + 8 * n + 2 * t + e, k / 4));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            float4 x = fa[m][h];
            float& s = c[m][n][2 * h + e];
            s = fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, s))));
          }
      }
  }
}

// c[m][n] += sum over k of p[m][k] · b[row_b + k][n], k < 8·P: p are fragments, the tile is contiguous along n. bf16: p is rounded.
template <int M, int N, int P, int Cb>
__device__ inline void product_pn(float (&c)[M][N][4], const float (&p)[M][P][4], Tile<bf16, Cb> b, int row_b) {
  static_assert(N % 2 == 0 && P % 2 == 0);
  int lane = lane_id();
#pragma unroll
  for (int k = 0; k < P; k += 2) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) fa[m][i] = pack_bf16(p[m][k + i / 2][i % 2 * 2], p[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[4];
      ldmatrix_transposed(fb, b.at(row_b + 8 * k + (lane & 15), n + (lane >> 4)));
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma(c[m][n], fa[m], fb[0], fb[1]);
        mma(c[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

template <int M, int N, int P, int Cb>
__device__ inline void product_pn(float (&c)[M][N][4], const float (&p)[M][P][4], Tile<float, Cb> b, int row_b) {
  int lane = lane_id(), t = lane & 3;
#pragma unroll
  for (int k = 0; k < P; k++)
#pragma unroll 1  // unrolled, all loads would be made first, and spill
    for (int pair = 0; pair < 4; pair++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float x[M][2];  // p of row k' = 8k + 2·pair + e, from the lane of the row's four that holds it
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int h = 0; h < 2; h++) x[m][h] = __shfl_sync(kAllLanes, p[m][k][2 * h + e], (lane & ~3) | pair);
#pragma unroll
        for (int n = 0; n < N; n++) {
          float2 y = *reinterpret_cast<const float2*>(b.at(row_b + 8 * k + 2 * pair + e, 2 * n + t / 2) + t % 2 * 8);
#pragma unroll
          for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
              c[m][n][2 * h] = fmaf(x[m][h], y.x, c[m][n][2 * h]);
              c[m][n][2 * h + 1] = fmaf(x[m][h], y.y, c[m][n][2 * h + 1]);
            }
        }
      }
}

// c[m][n] += sum over k of a[k][col_a + m] · b[k][col_b + n], k < K: both tiles are contiguous along m and n. Columns are multiples of 8.
template <int K, int M, int N, int Ca, int Cb>
__device__ inline void product_tn(float (&c)[M][N][4], Tile<bf16, Ca> a, int col_a, Tile<bf16, Cb> b, int col_b) {
  int lane = lane_id();
  product<K>(
      c, [](uint32_t(&r)[4], const char* row) { ldmatrix_transposed(r, row); },
      [&](int m, int k) { return a.at(k + (lane & 7) + (lane >> 4) * 8, col_a / 8 + 2 * m + (lane >> 3 & 1)); },
      [&](int n, int k) { return b.at(k + (lane & 15), col_b / 8 + n + (lane >> 4)); });
}

template <int K, int M, int N, int Ca, int Cb>
__device__ inline void product_tn(float (&c)[M][N][4], Tile<float, Ca> a, int col_a, Tile<float, Cb> b, int col_b) {
  int g = lane_id() >> 2, t = lane_id() & 3;
#pragma unroll 2
  for (int k = 0; k < K; k++) {
    float x[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) x[m][h] = *reinterpret_cast<const float*>(a.at(k, col_a / 4 + 4 * m + 2 * h + g / 4) + g % 4 * 4);
#pragma unroll
    for (int n = 0; n < N; n++) {
      float2 y = *reinterpret_cast<const float2*>(b.at(k, col_b / 4 + 2 * n + t / 2) + t % 2 * 8);
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          c[m][n][2 * h] = fmaf(x[m][h], y.x, c[m][n][2 * h]);
          c[m][n][2 * h + 1] = fmaf(x[m][h], y.y, c[m][n][2 * h + 1]);
        }
    }
  }
}

// ---- fragments to memory ----------------------------------------------------------------------------------------------------

// Stores 16 rows x 8·N columns. row0, row1: where column 0 of the rows g and g + 8 goes, NULL for a row that does not exist; columns from
// `cols` on do not exist. vec: rows and cols are multiples of 16 bytes. bf16: the four lanes of a row exchange, so that they write whole
// sectors of 32 bytes.
template <int N>
__device__ inline void store_rows(const float (&c)[N][4], bf16* row0, bf16* row1, int cols, bool vec) {
  int t = lane_id() & 3, source = (lane_id() & ~3) | (t % 2 * 2);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    bf16* row = h ? row1 : row0;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t a = pack_bf16(c[n][2 * h], c[n][2 * h + 1]), b = pack_bf16(c[n + 1][2 * h], c[n + 1][2 * h + 1]);
      // Lane t now has columns 2t, 2t + 1 of two groups of eight and will have 4t .. 4t + 3 of the sixteen.
      uint32_t a0 = __shfl_sync(kAllLanes, a, source), a1 = __shfl_sync(kAllLanes, a, source + 1);
      uint32_t b0 = __shfl_sync(kAllLanes, b, source), b1 = __shfl_sync(kAllLanes, b, source + 1);
      uint2 u = t < 2 ? make_uint2(a0, a1) : make_uint2(b0, b1);
      int col = 8 * n + 4 * t;
      if (!row || col >= cols) continue;
      if (vec) {
        *reinterpret_cast<uint2*>(row + col) = u;
        continue;
      }
      uint32_t w[2] = {u.x, u.y};
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (col + e < cols) row[col + e] = __ushort_as_bfloat16(uint16_t(w[e / 2] >> (e % 2 * 16)));
    }
  }
}

template <int N>
__device__ inline void store_rows(const float (&c)[N][4], float* row0, float* row1, int cols, bool vec) {
  int t = lane_id() & 3;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float* row = h ? row1 : row0;
    if (!row) continue;
#pragma unroll
    for (int n = 0; n < N; n++) {
      int col = 8 * n + 2 * t;
      if (col >= cols) continue;
      if (vec) {
        *reinterpret_cast<float2*>(row + col) = make_float2(c[n][2 * h], c[n][2 * h + 1]);
        continue;
      }
      row[col] = c[n][2 * h];
      if (col + 1 < cols) row[col + 1] = c[n][2 * h + 1];
    }
  }
}

}  // namespace fx::cuda
