// se.cpp: squeeze and excitation (spec 3.4), in f32: the mean over tokens, and the two small matrices that turn it into a gain per channel.
// Batches are small, so the matrices are read once each and every row of them serves all items.
#include "core/op.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kRows = 32;       // tokens per chunk of the mean, fixed
constexpr int64_t kChannels = 256;  // channels per job, fixed

int64_t blocks_of(int64_t C) { return (C + kChannels - 1) / kChannels; }
int64_t block_size(int64_t C, int64_t start) { return start + kChannels < C ? kChannels : C - start; }

template <class T>
fx_status squeeze_forward(fx_ctx* ctx, const fx_tensor* m, const fx_tensor* x) {
  int64_t B = x->shape[0], L = x->shape[1], C = x->shape[2];
  int64_t chunks = (L + kRows - 1) / kRows, blocks = blocks_of(C);
  float* partial = static_cast<float*>(workspace(ctx, B * chunks * C * 4));
  parallel_for(ctx, B * chunks, [&](int64_t job) {
    int64_t b = job / chunks, first = job % chunks * kRows, last = first + kRows < L ? first + kRows : L;
    float* sums = partial + job * C;
    memset(sums, 0, size_t(C) * 4);
    int64_t l = first;
    for (; l + 4 <= last; l += 4) {  // four rows a pass: the sums are read and written once for all
      const T *r0 = data<T>(x) + b * x->strides[0] + l * x->strides[1], *r1 = r0 + x->strides[1], *r2 = r1 + x->strides[1];
      const T* r3 = r2 + x->strides[1];
      for_lanes(C, [&](int64_t i, int64_t lanes) {
        const int64_t next = 4 * x->strides[1];
        prefetch(r0 + next + i, lanes), prefetch(r1 + next + i, lanes), prefetch(r2 + next + i, lanes), prefetch(r3 + next + i, lanes);
        vf low = load_some(r0 + i, lanes) + load_some(r1 + i, lanes), high = load_some(r2 + i, lanes) + load_some(r3 + i, lanes);
        store_some(sums + i, load_some(sums + i, lanes) + (low + high), lanes);
      });
    }
    for (; l < last; l++) {
      const T* row = data<T>(x) + b * x->strides[0] + l * x->strides[1];
      for_lanes(C, [&](int64_t i, int64_t lanes) { store_some(sums + i, load_some(sums + i, lanes) + load_some(row + i, lanes), lanes); });
    }
  });
  parallel_for(ctx, B * blocks, [&](int64_t job) {
    int64_t b = job / blocks, start = job % blocks * kChannels;
    for_lanes(block_size(C, start), [&](int64_t i, int64_t lanes) {
      vf total{};
      for (int64_t j = 0; j < chunks; j++) total += load_some(partial + (b * chunks + j) * C + start + i, lanes);
      store_some(data<float>(m) + b * C + start + i, total / float(L), lanes);
    });
  });
  return FX_STATUS_OK;
}

// dm / L is rounded once per item; the tokens' rows are copies of it.
template <class T>
fx_status squeeze_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dm) {
  int64_t B = dx->shape[0], L = dx->shape[1], C = dx->shape[2];
  T* rows = static_cast<T*>(workspace(ctx, B * C * int64_t(sizeof(T))));
  const float* d = data<float>(dm);
  for_lanes(B * C, [&](int64_t i, int64_t lanes) { store_some(rows + i, load_some(d + i, lanes) / float(L), lanes); });
  bool stream = streamed(dx);
  parallel_for(ctx, B * L, [&](int64_t row) {
    int64_t b = row / L, l = row % L;
    T *out = data<T>(dx) + b * dx->strides[0] + l * dx->strides[1], *from = rows + b * C;
    for_two(C, [&](int64_t i, auto lanes) { write_some(out + i, load_some(from + i, lanes), lanes, stream); });
  });
  return FX_STATUS_OK;
}

template <class W>
FX_INLINE float dot(const W* w, const float* x, int64_t n) {
  vf a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a += load(w + i) * load(x + i);
    b += load(w + i + kLanes) * load(x + i + kLanes);
  }
  for_lanes(n - i, [&](int64_t j, int64_t lanes) { a += load_some(w + i + j, lanes) * load_some(x + i + j, lanes); });
  return sum(a + b);
}

// y += a x.
template <class X>
FX_INLINE void add_scaled(float* y, float a, const X* x, int64_t n) {
  for_lanes(n, [&](int64_t i, int64_t lanes) { store_some(y + i, load_some(y + i, lanes) + a * load_some(x + i, lanes), lanes); });
}

// h = silu(u), all items.
void silu(float* h, const float* u, int64_t n) {
  for_lanes(n, [&](int64_t i, int64_t lanes) {
    vf v = load_some(u + i, lanes);
    store_some(h + i, v * sigmoid(v), lanes);
  });
}

template <class W>
fx_status excite_forward(fx_ctx* ctx, const fx_tensor* a, const fx_tensor* u, const fx_tensor* s, const fx_tensor* m, const fx_tensor* w1,
                         const fx_tensor* b1, const fx_tensor* w2, const fx_tensor* b2, const fx_tensor* gain) {
  int64_t B = m->shape[0], C = m->shape[1], R = w1->shape[0], blocks = blocks_of(C);
  float* up = data<float>(u);
  parallel_for(ctx, R, [&](int64_t r) {
    for (int64_t b = 0; b < B; b++) up[b * R + r] = dot(data<W>(w1) + r * C, data<float>(m) + b * C, C) + to_float(data<W>(b1)[r]);
  });
  float* hidden = static_cast<float*>(workspace(ctx, B * R * 4));
  silu(hidden, up, B * R);
  parallel_for(ctx, blocks, [&](int64_t block) {
    int64_t start = block * kChannels, n = block_size(C, start);
    for (int64_t b = 0; b < B; b++) {
      float *sp = data<float>(s) + b * C + start, *ap = data<float>(a) + b * C + start;
      for (int64_t c = 0; c < n; c++) sp[c] = dot(data<W>(w2) + (start + c) * R, hidden + b * R, R) + to_float(data<W>(b2)[start + c]);
      for_lanes(n, [&](int64_t i, int64_t lanes) {
        vf v = sigmoid(load_some(sp + i, lanes));
        store_some(sp + i, v, lanes);
        store_some(ap + i, v * load_some(data<W>(gain) + start + i, lanes), lanes);
      });
    }
  });
  return FX_STATUS_OK;
}

// The arguments of excite_backward that its two halves share.
struct Excite {
  int64_t B, C, R;
  float *dw1, *db1, *dw2, *db2, *dgain;  // NULL when frozen
  const float *m, *s, *hidden;           // hidden = silu(u)
};

// Channels [start, start + n): de = da ⊙ gain ⊙ s (1 − s), and with it dw2, db2, dgain; dhidden [B,R] = de w2 over these channels alone.
template <class W>
void outer_block(const Excite& e, float* dhidden, const float* da, const W* w2, const W* gain, int64_t start, int64_t n) {
  memset(dhidden, 0, size_t(e.B * e.R) * 4);
  for (int64_t c = start; c < start + n; c++) {
    for (int64_t b = 0; b < e.B; b++) {
      float s = e.s[b * e.C + c], d = da[b * e.C + c];
      float de = d * to_float(gain[c]) * s * (1 - s);
      add_scaled(dhidden + b * e.R, de, w2 + c * e.R, e.R);
      if (!e.dw2) continue;
      add_scaled(e.dw2 + c * e.R, de, e.hidden + b * e.R, e.R);
      e.db2[c] += de;
      e.dgain[c] += d * s;
    }
  }
}

// Channels [start, start + n): dm = du w1, dw1 += du^T m.
template <class W>
void inner_block(const Excite& e, float* dm, const float* du, const W* w1, int64_t start, int64_t n) {
  for (int64_t b = 0; b < e.B; b++) memset(dm + b * e.C + start, 0, size_t(n) * 4);
  for (int64_t r = 0; r < e.R; r++) {
    for (int64_t b = 0; b < e.B; b++) {
      add_scaled(dm + b * e.C + start, du[b * e.R + r], w1 + r * e.C + start, n);
      if (e.dw1) add_scaled(e.dw1 + r * e.C + start, du[b * e.R + r], e.m + b * e.C + start, n);
    }
  }
}

// du [B,R] = silu'(u) ⊙ sum over blocks of dhidden, in order.
void hidden_backward(float* du, const float* dhidden, const float* u, int64_t n, int64_t blocks) {
  for_lanes(n, [&](int64_t i, int64_t lanes) {
    vf total{};
    for (int64_t j = 0; j < blocks; j++) total += load_some(dhidden + j * n + i, lanes);
    vf v = load_some(u + i, lanes), s, rest;
    sigmoid_pair(v, s, rest);
    store_some(du + i, total * s * (1.0f + v * rest), lanes);
  });
}

template <class W>
fx_status excite_backward(fx_ctx* ctx, const fx_tensor* dm, const fx_tensor* dw1, const fx_tensor* db1, const fx_tensor* dw2,
                          const fx_tensor* db2, const fx_tensor* dgain, const fx_tensor* da, const fx_tensor* m, const fx_tensor* u,
                          const fx_tensor* s, const fx_tensor* w1, const fx_tensor* w2, const fx_tensor* gain) {
  auto grad = [](const fx_tensor* t) { return t ? data<float>(t) : nullptr; };
  int64_t B = m->shape[0], C = m->shape[1], R = w1->shape[0], blocks = blocks_of(C);
  float* hidden = static_cast<float*>(workspace(ctx, B * R * (blocks + 2) * 4));
  float *du = hidden + B * R, *dhidden = du + B * R;
  Excite e{B, C, R, grad(dw1), grad(db1), grad(dw2), grad(db2), grad(dgain), data<float>(m), data<float>(s), hidden};
  silu(hidden, data<float>(u), B * R);
  parallel_for(ctx, blocks, [&](int64_t i) {
    outer_block(e, dhidden + i * B * R, data<float>(da), data<W>(w2), data<W>(gain), i * kChannels, block_size(C, i * kChannels));
  });
  hidden_backward(du, dhidden, data<float>(u), B * R, blocks);
  parallel_for(ctx, blocks,
               [&](int64_t i) { inner_block(e, data<float>(dm), du, data<W>(w1), i * kChannels, block_size(C, i * kChannels)); });
  for (int64_t b = 0; e.db1 && b < B; b++) add_scaled(e.db1, 1, du + b * R, R);
  return FX_STATUS_OK;
}

fx_status se_squeeze_forward(fx_ctx* ctx, const fx_tensor* m, const fx_tensor* x) {
  return dispatch(x->dtype, [&](auto t) { return squeeze_forward<decltype(t)>(ctx, m, x); });
}

fx_status se_squeeze_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dm) {
  return dispatch(dx->dtype, [&](auto t) { return squeeze_backward<decltype(t)>(ctx, dx, dm); });
}

fx_status se_excite_forward(fx_ctx* ctx, const fx_tensor* a, const fx_tensor* u, const fx_tensor* s, const fx_tensor* m,
                            const fx_tensor* w1, const fx_tensor* b1, const fx_tensor* w2, const fx_tensor* b2, const fx_tensor* gain) {
  return dispatch(w1->dtype, [&](auto t) { return excite_forward<decltype(t)>(ctx, a, u, s, m, w1, b1, w2, b2, gain); });
}

fx_status se_excite_backward(fx_ctx* ctx, const fx_tensor* dm, const fx_tensor* dw1, const fx_tensor* db1, const fx_tensor* dw2,
                             const fx_tensor* db2, const fx_tensor* dgain, const fx_tensor* da, const fx_tensor* m, const fx_tensor* u,
                             const fx_tensor* s, const fx_tensor* w1, const fx_tensor* w2, const fx_tensor* gain) {
  return dispatch(w1->dtype,
                  [&](auto t) { return excite_backward<decltype(t)>(ctx, dm, dw1, db1, dw2, db2, dgain, da, m, u, s, w1, w2, gain); });
}

}  // namespace

void add_se(fx_ops* ops) {
  ops->se_squeeze_forward = se_squeeze_forward;
  ops->se_squeeze_backward = se_squeeze_backward;
  ops->se_excite_forward = se_excite_forward;
  ops->se_excite_backward = se_excite_backward;
}

}  // namespace fx::FX_TIER
