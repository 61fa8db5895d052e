// attention.cuh: what the attention kernels share: arguments, rows of one head, launches. Which kernel runs:
//   D <= 128  attention.cu, attention_backward.cu: tiles in shared memory, products of mma.cuh; D is padded to 32, 64 or 128
//   D > 128   attention_wide.cu: rows in the registers of a warp, f32 FMA (only autoencoders have such heads, and only one)
#pragma once
#include "mma.cuh"

namespace fx::cuda {

struct AttentionShape {
  int B, H, Lq, Lk, D;
};

// A tensor [B,L,H,D]; strides in elements.
template <class T>
struct Heads {
  T* data;
  int64_t batch, row, head;
  bool vec;  // every row starts at a multiple of 16 bytes
};

// The rows of one head.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;
  int length, dims;
  bool vec;

  // NULL beyond the last.
  __device__ T* row(int i) const { return i < length ? data + i * stride : nullptr; }

  // Rows [first, first + R) to a tile of R rows x D columns, zeros where there are none, by all threads of a block.
  template <int R, int D, int Threads>
  __device__ void load(Tile<T, D> tile, int first) const {
    constexpr int units = Tile<T, D>::kUnits, step = Threads / units;
    static_assert(R % step == 0);
    int r = int(threadIdx.x) / units, unit = int(threadIdx.x) % units, exist = unit * kUnit<T> < dims ? length - first : 0;
    const T* src = data + (first + r) * stride + unit * kUnit<T>;
    if (vec) {
#pragma unroll
      for (int i = 0; i < R; i += step, src += step * stride) cp_async16(tile.at(r + i, unit), r + i < exist ? src : data, r + i < exist);
    } else {
#pragma unroll 1
      for (int i = 0; i < R; i += step, src += step * stride) load_unit(tile.at(r + i, unit), src, r + i < exist ? kUnit<T> : 0);
    }
  }
};

template <class T>
__device__ inline HeadRows<T> head_rows(const Heads<T>& t, int b, int h, int length, int dims) {
  return {t.data + b * t.batch + h * t.head, t.row, length, dims, t.vec};
}

template <class T>
Heads<T> heads(const fx_tensor* t) {
  return {static_cast<T*>(t->data), t->strides[0], t->strides[1], t->strides[2], vectors(t, 16)};
}

inline AttentionShape attention_shape(const fx_tensor* q, const fx_tensor* k) {
  return {int(q->shape[0]), int(q->shape[2]), int(q->shape[1]), int(k->shape[1]), int(q->shape[3])};
}

// Queries and keys normed and rotated, in the workspace; what backward needs of the norm; memory for the caller.
struct NormedHeads {
  fx_tensor q, k;         // contiguous
  float *rstd, *partial;  // of q, then of k; sums of the gradients of weights
  void* more;
};
// Takes the workspace, `more` bytes of it for the caller.
NormedHeads norm_heads(fx_ctx* ctx, const fx_tensor* q, const fx_tensor* k, const fx_qk_norm& norm, int64_t more);
// dq and dk of the normed rows become those of q and k; adds to the gradients of the weights.
void norm_heads_backward(fx_ctx* ctx, const NormedHeads& n, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* q,
                         const fx_tensor* k, const fx_qk_norm& norm);

// Gradients: delta [B,H,Lq] is rowsum(do · o).
struct BackwardTensors {
  const fx_tensor *dq, *dk, *dv, *d_o, *q, *k, *v;
  const float *lse, *delta;
};

fx_status attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                             const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                             const fx_qk_norm* norm, float scale);
void attention_wide_forward(fx_ctx* ctx, const fx_tensor* o, float* lse, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v,
                            float scale);
void attention_wide_backward(fx_ctx* ctx, const BackwardTensors& t, float scale);

// Calls f with the padded head dimension as a compile-time constant.
template <int V>
struct Count {
  static constexpr int value = V;
};
template <class F>
void with_head_dim(int64_t D, F&& f) {
  if (D <= 32) f(Count<32>{});
  else if (D <= 64) f(Count<64>{});
  else f(Count<128>{});
}

}  // namespace fx::cuda
