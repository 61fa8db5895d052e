// attention_norm.cu: rows that many blocks read are normed and rotated once, into the workspace, before the attention kernels: keys, and
// for backward queries too. Where D is more than 128, dq and dk are turned back afterwards, in their place; else attention_backward.cu does
// that while it stores them. The tokens before norm.split and the others are two calls each.
#include "attention.cuh"
#include "qk_norm_rope.cuh"

namespace fx::cuda {
namespace {

const fx_tensor* present(const fx_tensor& t) { return t.rank > 0 ? &t : nullptr; }

// The tokens [low, high) of t, along dimension `dim`.
fx_tensor tokens(const fx_tensor& t, int dim, int64_t low, int64_t high) {
  fx_tensor part = t;
  part.shape[dim] = high - low;
  part.data = static_cast<char*>(t.data) + low * t.strides[dim] * (t.dtype == FX_DTYPE_BF16 ? 2 : 4);
  return part;
}

// Calls f(x, y, pe, weight, dweight, rstd) for the parts of q and k that have a weight of their own. y as x.
template <class F>
void each_part(const NormedHeads& n, const fx_tensor* const (&x)[2], const fx_tensor* const (&y)[2], const fx_qk_norm& norm, const F& f) {
  int64_t B = x[0]->shape[0], L = x[0]->shape[1], H = x[0]->shape[2], edges[] = {0, norm.split, L};
  for (int side = 0; side < 2; side++)
    for (int i = 0; i < 2; i++) {
      if (edges[i] == edges[i + 1] || x[side]->data == y[side]->data) continue;
      fx_tensor from = tokens(*x[side], 1, edges[i], edges[i + 1]), to = tokens(*y[side], 1, edges[i], edges[i + 1]), pe = norm.pe;
      if (pe.rank) pe = tokens(pe, 0, edges[i], edges[i + 1]);
      const fx_tensor *weight = side ? norm.key : norm.query, *dweight = side ? norm.dkey : norm.dquery;
      f(&from, &to, present(pe), present(weight[i]), present(dweight[i]), n.rstd ? n.rstd + (side * L + edges[i]) * B * H : nullptr);
    }
}

}  // namespace

NormedHeads norm_heads(fx_ctx* ctx, const fx_tensor* q, const fx_tensor* k, const fx_qk_norm& norm, bool queries, bool unnorm,
                       int64_t more) {
  int64_t B = q->shape[0], L = q->shape[1], H = q->shape[2], D = q->shape[3], rows = B * L * H;
  int64_t bytes = round_up(rows * D * (q->dtype == FX_DTYPE_BF16 ? 2 : 4), 256), rstd = unnorm ? round_up(2 * rows * 4, 256) : 0;
  int64_t sums = unnorm ? round_up(norm_rope_partial(B * L, D) * 4, 256) : 0, normed = queries ? 2 * bytes : bytes;
  char* space = static_cast<char*>(workspace(ctx, normed + rstd + sums + more));
  NormedHeads n{*q, *k, nullptr, nullptr, space + normed + rstd + sums};
  if (unnorm) n.rstd = reinterpret_cast<float*>(space + normed), n.partial = reinterpret_cast<float*>(space + normed + rstd);
  n.k.data = space;
  if (queries) n.q.data = space + bytes;
  for (fx_tensor* t : {&n.q, &n.k})
    if (t == &n.k || queries) t->strides[0] = L * H * D, t->strides[1] = H * D, t->strides[2] = D;
  each_part(n, {q, k}, {&n.q, &n.k}, norm,
            [&](auto* x, auto* y, auto* pe, auto* weight, auto*, float* own) { norm_rope(ctx, y, own, x, weight, pe, norm.eps); });
  return n;
}

void norm_heads_backward(fx_ctx* ctx, const NormedHeads& n, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* q,
                         const fx_tensor* k, const fx_qk_norm& norm) {
  each_part(n, {q, k}, {dq, dk}, norm, [&](auto* x, auto* dy, auto* pe, auto* weight, auto* dweight, float* rstd) {
    norm_rope_backward(ctx, dy, dweight, n.partial, dy, x, rstd, weight, pe);
  });
}

}  // namespace fx::cuda
