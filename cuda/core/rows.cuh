// rows.cuh: walks tensors of one shape together, one vector per thread. Dimensions without gaps in any of the tensors are merged, so dense
// tensors are one long row. Indices are 32 bits wide: tensors of 2^31 vectors or more are refused.
#pragma once
#include "device.cuh"

namespace fx::cuda {

// Where a vector lies in each of N tensors.
template <int N>
struct At {
  uint32_t item;  // index of dimension 0, where the batch is kept apart
  int64_t at[N];  // offset in elements
};

template <int N>
struct Rows {
  int rank = 0;     // of the outer dimensions
  int64_t total;    // vectors
  int32_t width;    // elements of a vector
  Divider per_row;  // vectors of a row
  Divider dims[FX_MAX_RANK];
  int64_t strides[N][FX_MAX_RANK];

  __device__ __forceinline__ At<N> at(uint32_t index) const {
    At<N> a;
    uint32_t row = per_row.split(index);
    for (int k = 0; k < N; k++) a.at[k] = int64_t(index) * width;
    a.item = 0;
    for (int d = rank - 1; d >= 0; d--) {
      uint32_t i = row;
      row = dims[d].split(i);
      a.item = i;
      for (int k = 0; k < N; k++) a.at[k] += i * strides[k][d];
    }
    return a;
  }
};

// Builder of Rows on the host. tensors: of one shape, last dimension contiguous, NULL where absent but not the first. batch: dimension 0 is
// kept apart.
template <int N>
struct RowsPlan {
  const fx_tensor* tensors[N];
  int64_t elements = 1, row = 1;
  int rank = 0;
  int64_t shape[FX_MAX_RANK + 1] = {}, strides[N][FX_MAX_RANK + 1] = {};

  explicit RowsPlan(const fx_tensor* const (&t)[N], bool batch = false) {
    for (int k = 0; k < N; k++) tensors[k] = t[k];
    const fx_tensor* lead = t[0];
    for (int d = 0; d < lead->rank; d++) {
      elements *= lead->shape[d];
      if (lead->shape[d] == 1 && !(batch && d == 0) && d != lead->rank - 1) continue;
      if (rank > (batch ? 1 : 0) && gapless(d)) shape[rank - 1] *= lead->shape[d];
      else shape[rank++] = lead->shape[d];
      for (int k = 0; k < N; k++) strides[k][rank - 1] = stride(k, d);
    }
    if (rank == 1 && batch && lead->rank == 1) shape[rank++] = 1;  // one element per item
    if (rank > 0) row = shape[--rank];
  }

  // Can all tensors be walked in vectors of `width` elements?
  bool wide(int64_t width) const {
    for (int k = 0; k < N; k++) {
      if (!tensors[k]) continue;
      int64_t bytes = width * (tensors[k]->dtype == FX_DTYPE_F32 ? 4 : 2);
      if (reinterpret_cast<uintptr_t>(tensors[k]->data) % uintptr_t(bytes) || row % width) return false;
      for (int d = 0; d < rank; d++)
        if (shape[d] > 1 && strides[k][d] % width) return false;
    }
    return true;
  }

  Rows<N> rows(int width) const {
    Rows<N> r;
    r.rank = rank;
    r.width = width;
    r.total = elements / width;
    r.per_row = Divider(row / width);
    for (int d = 0; d < rank; d++) {
      r.dims[d] = Divider(shape[d]);
      for (int k = 0; k < N; k++) r.strides[k][d] = strides[k][d];
    }
    return r;
  }

 private:
  // A last dimension of size 1 has no stride of its own.
  int64_t stride(int k, int d) const {
    if (!tensors[k]) return 0;
    return d == tensors[k]->rank - 1 ? 1 : tensors[k]->strides[d];
  }

  // Does dimension d continue the last collected one in every tensor?
  bool gapless(int d) const {
    for (int k = 0; k < N; k++)
      if (tensors[k] && strides[k][rank - 1] != tensors[k]->shape[d] * stride(k, d)) return false;
    return true;
  }
};

// f.run<V>(at) for every vector.
template <int V, int N, class F>
__global__ void __launch_bounds__(kThreads) rows_kernel(Rows<N> rows, F f) {
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < rows.total) f.template run<V>(rows.at(uint32_t(i)));
}

// Launches rows_kernel with vectors of F::kWidth elements where all tensors allow it (wide), else element by element.
template <int N, class F>
fx_status for_rows(fx_ctx* ctx, const RowsPlan<N>& plan, const F& f, bool wide) {
  Rows<N> rows = plan.rows(wide ? F::kWidth : 1);
  if (rows.total >= int64_t(1) << 31)
    return fail(ctx, FX_STATUS_UNSUPPORTED, "tensors of %lld elements are too large for the cuda backend", (long long)plan.elements);
  if (wide) rows_kernel<F::kWidth><<<blocks_for(rows.total), kThreads, 0, stream(ctx)>>>(rows, f);
  else rows_kernel<1><<<blocks_for(rows.total), kThreads, 0, stream(ctx)>>>(rows, f);
  return FX_STATUS_OK;
}

template <int N, class F>
fx_status for_rows(fx_ctx* ctx, const RowsPlan<N>& plan, const F& f) {
  return for_rows(ctx, plan, f, plan.wide(F::kWidth));
}

}  // namespace fx::cuda
