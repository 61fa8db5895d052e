// sums.cuh: sums over all elements of tensors, as losses are: a vector's terms in f32, everything above in f64 and in an order that the
// shape decides.
#pragma once
#include "rows.cuh"

namespace fx::cuda {

constexpr int64_t kSumBlocks = 1024;

// partial[block] = sum over the block's vectors of f.term<V>(at).
template <int V, int N, class F>
__global__ void __launch_bounds__(kThreads) sum_rows_kernel(double* partial, Rows<N> rows, F f) {
  double total = 0;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < rows.total; i += int64_t(gridDim.x) * kThreads)
    total += f.template term<V>(rows.at(uint32_t(i)));
  total = block_sum(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// out = factor · sum of partial.
static __global__ void __launch_bounds__(kThreads) finish_sum_kernel(float* out, const double* partial, int64_t n, double factor) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) total += partial[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *out = float(factor * total);
}

// *out = factor · the sum over all elements.
template <int N, class F>
fx_status sum_rows(fx_ctx* ctx, float* out, const RowsPlan<N>& plan, const F& f, double factor) {
  bool wide = plan.wide(F::kWidth);
  Rows<N> rows = plan.rows(wide ? F::kWidth : 1);
  if (rows.total >= int64_t(1) << 31)
    return fail(ctx, FX_STATUS_UNSUPPORTED, "tensors of %lld elements are too large for the cuda backend", (long long)plan.elements);
  int64_t blocks = ceil_div(rows.total, kThreads);
  if (blocks > kSumBlocks) blocks = kSumBlocks;
  double* partial = static_cast<double*>(workspace(ctx, kSumBlocks * 8));
  if (wide) sum_rows_kernel<F::kWidth><<<unsigned(blocks), kThreads, 0, stream(ctx)>>>(partial, rows, f);
  else sum_rows_kernel<1><<<unsigned(blocks), kThreads, 0, stream(ctx)>>>(partial, rows, f);
  finish_sum_kernel<<<1, kThreads, 0, stream(ctx)>>>(out, partial, blocks, factor);
  return FX_STATUS_OK;
}

}  // namespace fx::cuda
