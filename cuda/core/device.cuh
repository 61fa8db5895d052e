// device.cuh: the vocabulary of the kernels: vectors of elements, sums over groups of threads, division by constants of a launch, launches.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "op.h"

namespace fx::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr int kThreads = 256;  // of a block, where nothing else decides
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- elements ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ void put(float* p, float x) { *p = x; }
__device__ __forceinline__ void put(bf16* p, float x) { *p = __float2bfloat16_rn(x); }
// The card's own conversion loses the sign of a NaN.
__device__ __forceinline__ void put(f16* p, float x) {
  *p = x == x ? __float2half_rn(x) : __ushort_as_half(uint16_t((__float_as_uint(x) >> 16 & 0x8000) | 0x7e00));
}

// V elements that are loaded and stored together, 16 bytes at a time where there are as many.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T v[V];
};

// Elements of a vector: 16 bytes of the widest of the types.
template <class... T>
constexpr int vector_width = ((sizeof(T) == 2) && ...) ? 8 : 4;

template <int V, class T>
__device__ __forceinline__ void load(float (&out)[V], const T* p) {
  Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(p);
#pragma unroll
  for (int i = 0; i < V; i++) out[i] = to_float(pack.v[i]);
}

// Two floats to bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t u;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
  return u;
}

// N words to global memory in one instruction, or in one per 16 bytes. Written out because in loops over rows the compiler takes a store of
// a Pack apart into single elements.
template <int N>
__device__ __forceinline__ void store_words(void* p, const uint32_t (&w)[N]) {
  static_assert(N == 2 || N % 4 == 0);
  size_t to = __cvta_generic_to_global(p);
  if constexpr (N == 2) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w[0]), "r"(w[1]) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4)
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to + 4 * i), "r"(w[i]), "r"(w[i + 1]), "r"(w[i + 2]), "r"(w[i + 3])
                   : "memory");
  }
}

template <int V, class T>
__device__ __forceinline__ void store(T* p, const float (&x)[V]) {
  constexpr int words = V * int(sizeof(T)) / 4;
  if constexpr (words > 1) {
    uint32_t w[words];
#pragma unroll
    for (int i = 0; i < words; i++)
      if constexpr (sizeof(T) == 4) w[i] = __float_as_uint(x[i]);
      else w[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
    store_words(p, w);
  } else {
#pragma unroll
    for (int i = 0; i < V; i++) put(p + i, x[i]);
  }
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// sigmoid(x) and 1 − sigmoid(x), neither by cancellation.
__device__ __forceinline__ void sigmoid_pair(float x, float& s, float& rest) {
  float e = expf(-fabsf(x)), large = 1.0f / (1.0f + e), small = e * large;
  s = x >= 0 ? large : small;
  rest = x >= 0 ? small : large;
}

// ---- sums ----

// Sum over a warp's groups of `size` neighbouring lanes, size a power of two up to 32; every lane gets it.
template <class T>
__device__ __forceinline__ T lanes_sum(T x, int size = 32) {
  for (int offset = size / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// The threads that share a row: a power of two up to 32, or whole warps. Blocks hold whole groups; all their threads call together.
struct Group {
  int size, lane;  // lane: this thread's index in its group
  float* shared;   // blockDim.x / 32 floats, used where size > 32

  __device__ Group(int threads, float* memory) : size(threads), lane(int(threadIdx.x) % threads), shared(memory) {}

  // Sum over the group, in an order that only its size decides; every thread gets it.
  __device__ float sum(float x) const {
    if (size <= 32) return lanes_sum(x, size);
    x = lanes_sum(x);
    int warp = int(threadIdx.x) / 32, warps = size / 32, first = warp / warps * warps;
    __syncthreads();  // the sum before has been read
    if (threadIdx.x % 32 == 0) shared[warp] = x;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < warps; i++) total += shared[first + i];
    return total;
  }
};

// Sum over a block of kThreads, in a fixed order; thread 0 gets it.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[kThreads / 32];
  x = lanes_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < kThreads / 32; i++) total += warps[i];
  return total;
}

// ---- division by a number known at launch ----

// n / d for n, d < 2^31, by a product (Granlund and Montgomery 1994, round-up method).
struct Divider {
  uint32_t d, magic, shift;
  Divider() = default;
  explicit Divider(int64_t divisor) : d(uint32_t(divisor)), magic(0), shift(0) {
    while ((uint64_t(1) << shift) < d) shift++;
    magic = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - d)) / d + 1);
  }
  // Quotient; n becomes the remainder.
  __device__ __forceinline__ uint32_t split(uint32_t& n) const {
    uint32_t q = (__umulhi(n, magic) + n) >> shift;
    n -= q * d;
    return q;
  }
};

// ---- host: launches ----

// Calls f with a value of the element type of dtype.
template <class F>
fx_status dispatch(fx_dtype dtype, F&& f) {
  return dtype == FX_DTYPE_F32 ? f(float{}) : f(bf16{});
}

// May rows of t be read as vectors of `bytes`? Every row must start at a multiple, and the row be a whole number of them.
inline bool vectors(const fx_tensor* t, int64_t bytes) {
  if (!t) return true;
  int64_t size = t->dtype == FX_DTYPE_F32 ? 4 : 2, row = t->shape[t->rank - 1];
  if (reinterpret_cast<uintptr_t>(t->data) % uintptr_t(bytes) || row * size % bytes) return false;
  for (int d = 0; d < t->rank - 1; d++)
    if (t->shape[d] > 1 && t->strides[d] * size % bytes) return false;
  return true;
}

inline unsigned blocks_for(int64_t threads) { return unsigned(ceil_div(threads, kThreads)); }

// Launches a kernel with `bytes` of dynamic shared memory, which may be more than the 48 KB that need no leave.
template <class... P, class... A>
void launch(fx_ctx* ctx, void (*kernel)(P...), int64_t blocks, int threads, int bytes, A... args) {
  if (bytes > 48 << 10) require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
  kernel<<<unsigned(blocks), unsigned(threads), size_t(bytes), stream(ctx)>>>(args...);
}

}  // namespace fx::cuda
