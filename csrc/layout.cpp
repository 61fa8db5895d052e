// layout.cpp: moving data: 2x2 packing, copies between any two layouts and dtypes, fill, and the sum over a batch.
#include "core/rows.h"

namespace fx::FX_TIER {

// ---- f16, which no other op knows ----

struct f16 {
  uint16_t bits;
};

// The exponent is moved to f32's place and rescaled by a product, which makes subnormals normal; inf and NaN are put right.
FX_INLINE vf load(const f16* p) {
  vh h;
  memcpy(&h, p, sizeof h);
  vu u = __builtin_convertvector(h, vu), magnitude = (u & 0x7fff) << 13;
  vf value = (vf)magnitude * 0x1p112f;
  value = select((vi)(magnitude >= 0x0f800000), (vf)(magnitude | 0x7f800000), value);
  return (vf)((vu)value | (u & 0x8000) << 16);
}

// Round to nearest even. Subnormals: adding 1/2 aligns the significand with 2^-24 and rounds it.
FX_INLINE vh round_f16(vf v) {
  vu sign = ((vu)v >> 16) & 0x8000, u = (vu)v & 0x7fffffff;
  vu normal = (u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13;
  vu small = (vu)((vf)u + 0.5f) - 0x3f000000;
  vu half = (vu)select((vi)(u < 0x38800000), (vf)small, (vf)normal);
  half = (vu)select((vi)(u >= 0x477ff000), (vf)(vu{} + 0x7c00), (vf)half);
  half = (vu)select((vi)(u > 0x7f800000), (vf)(vu{} + 0x7e00), (vf)half);
  return __builtin_convertvector(half | sign, vh);
}
FX_INLINE void store(f16* p, vf v) {
  vh h = round_f16(v);
  memcpy(p, &h, sizeof h);
}
FX_INLINE void stream(f16* p, vf v) { stream_bits(p, round_f16(v)); }

namespace {

// ---- pack, unpack ----

// Moves between an image [B,2H,2W,C] and its tokens [B,H·W,4C], one row of tokens per job. U: an integer of the element's size.
template <class U, bool kPack>
fx_status repack(fx_ctx* ctx, const fx_tensor* image, const fx_tensor* tokens) {
  int64_t H = image->shape[1] / 2, W = image->shape[2] / 2, C = image->shape[3];
  int64_t down = image->strides[1], right = image->strides[2];
  parallel_for(ctx, image->shape[0] * H, [&](int64_t job) {
    int64_t b = job / H, row = job % H;
    for (int64_t column = 0; column < W; column++) {
      U* __restrict pixel = data<U>(image) + b * image->strides[0] + 2 * row * down + 2 * column * right;
      U* __restrict token = data<U>(tokens) + b * tokens->strides[0] + (row * W + column) * tokens->strides[1];
      for (int64_t c = 0; c < C; c++) {
        const int64_t at[4] = {c, right + c, down + c, down + right + c};
        for (int i = 0; i < 4; i++) {
          if (kPack) token[4 * c + i] = pixel[at[i]];
          else pixel[at[i]] = token[4 * c + i];
        }
      }
    }
  });
  return FX_STATUS_OK;
}

fx_status pack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  return x->dtype == FX_DTYPE_F32 ? repack<uint32_t, true>(ctx, x, y) : repack<uint16_t, true>(ctx, x, y);
}

fx_status unpack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  return x->dtype == FX_DTYPE_F32 ? repack<uint32_t, false>(ctx, y, x) : repack<uint16_t, false>(ctx, y, x);
}

// ---- layout ----

template <class Y, class X>
constexpr bool kSame = false;
template <class T>
constexpr bool kSame<T, T> = true;

// n elements of the same bits, around the caches: y on a cache line.
template <class T>
void copy_bits(T* y, const T* x, int64_t n) {
  constexpr int64_t kStep = sizeof(vu) / sizeof(T);
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    prefetch(x + i + kFetchAhead / sizeof(T), kStep);
    vu bits;
    memcpy(&bits, x + i, sizeof bits);
    stream_bits(y + i, bits);
  }
  memcpy(y + i, x + i, size_t(n - i) * sizeof(T));
}

template <class Y, class X>
void copy_row(Y* y, const X* x, int64_t n, bool stream) {
  if constexpr (kSame<Y, X>) {
    if (stream) copy_bits(y, x, n);
    else memcpy(y, x, size_t(n) * sizeof(X));
  } else {
    for_lanes(n, [&](int64_t i, int64_t lanes) { write_some(y + i, read_some(x + i, lanes), lanes, stream); });
  }
}

// y[i·ys] = x[i·xs]; what must be converted goes through one vector at a time.
template <class Y, class X>
void copy_strided(Y* y, const X* x, int64_t n, int64_t ys, int64_t xs) {
  if constexpr (kSame<Y, X>) {
    for (int64_t i = 0; i < n; i++) y[i * ys] = x[i * xs];
  } else {
    for_lanes(n, [&](int64_t i, int64_t lanes) {
      X in[kLanes] = {};
      Y out[kLanes];
      for (int64_t j = 0; j < lanes; j++) in[j] = x[(i + j) * xs];
      store(out, load(in));
      for (int64_t j = 0; j < lanes; j++) y[(i + j) * ys] = out[j];
    });
  }
}

// The dimensions of a copy, without those of size 1 and with gapless ones merged. The last is where y is dense; before it stands the one
// where x is, so that a tile over both uses whole cache lines on both sides.
struct Dims {
  int rank = 0;
  int64_t n[FX_MAX_RANK + 2], ys[FX_MAX_RANK + 2], xs[FX_MAX_RANK + 2];

  Dims(const fx_tensor* y, const fx_tensor* x) {
    push(1, 0, 0), push(1, 0, 0);
    for (int d = 0; d < y->rank; d++) {
      int64_t size = y->shape[d];
      if (size == 1) continue;
      int last = rank - 1;
      if (last >= 2 && ys[last] == size * y->strides[d] && xs[last] == size * x->strides[d])
        n[last] *= size, ys[last] = y->strides[d], xs[last] = x->strides[d];
      else push(size, y->strides[d], x->strides[d]);
    }
    to_back(densest(ys, rank));
    to_back(densest(xs, rank - 1));
    to_back(rank - 2);
  }

 private:
  void push(int64_t size, int64_t y, int64_t x) { n[rank] = size, ys[rank] = y, xs[rank] = x, rank++; }

  // Of the first count dimensions the one with the smallest stride other than 0.
  int densest(const int64_t* strides, int count) const {
    int best = 0;
    for (int d = 1; d < count; d++) {
      bool closer = strides[d] && (!strides[best] || strides[d] <= strides[best]);
      if (n[best] == 1 || (n[d] > 1 && closer)) best = d;
    }
    return best;
  }

  // Moves dimension d behind all others.
  void to_back(int d) {
    int64_t size = n[d], y = ys[d], x = xs[d];
    for (; d + 1 < rank; d++) n[d] = n[d + 1], ys[d] = ys[d + 1], xs[d] = xs[d + 1];
    n[d] = size, ys[d] = y, xs[d] = x;
  }
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// A tile [down, across] of a copy: rows where both sides are dense, else a transposition, whose inner loop runs along the longer side.
template <class Y, class X>
void copy_tile(Y* y, const X* x, const Dims& dims, int64_t down, int64_t across, bool stream) {
  int i = dims.rank - 1, j = i - 1;
  if (dims.ys[i] == 1 && dims.xs[i] == 1) {
    for (int64_t k = 0; k < down; k++) copy_row(y + k * dims.ys[j], x + k * dims.xs[j], across, stream);
  } else if (across >= down) {
    for (int64_t k = 0; k < down; k++) copy_strided(y + k * dims.ys[j], x + k * dims.xs[j], across, dims.ys[i], dims.xs[i]);
  } else {
    for (int64_t k = 0; k < across; k++) copy_strided(y + k * dims.ys[i], x + k * dims.xs[i], down, dims.ys[j], dims.xs[j]);
  }
}

template <class Y, class X>
fx_status copy(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  Dims dims(y, x);
  int i = dims.rank - 1, j = i - 1;
  bool row = dims.ys[i] == 1 && dims.xs[i] == 1, stream = row && streamed(y);
  // Tiles of at most kJob elements of whole rows, or of 32 x 32 elements to transpose, longer the other way where one side is short.
  int64_t area = row ? kJob : 32 * 32, wide = least(dims.n[i], row ? kJob : 32), high = least(dims.n[j], area / wide);
  int64_t across = (dims.n[i] + wide - 1) / wide, down = (dims.n[j] + high - 1) / high, jobs = across * down;
  for (int d = 0; d < j; d++) jobs *= dims.n[d];
  parallel_for(ctx, jobs, [&](int64_t job) {
    int64_t i0 = job % across * wide, j0 = job / across % down * high, rest = job / across / down;
    int64_t ya = i0 * dims.ys[i] + j0 * dims.ys[j], xa = i0 * dims.xs[i] + j0 * dims.xs[j];
    for (int d = j - 1; d >= 0; d--) {
      ya += rest % dims.n[d] * dims.ys[d];
      xa += rest % dims.n[d] * dims.xs[d];
      rest /= dims.n[d];
    }
    copy_tile(data<Y>(y) + ya, data<X>(x) + xa, dims, least(high, dims.n[j] - j0), least(wide, dims.n[i] - i0), stream);
  });
  return FX_STATUS_OK;
}

template <class F>
fx_status dispatch_loading(fx_dtype dtype, const F& f) {
  return dtype == FX_DTYPE_F16 ? f(f16{}) : dispatch(dtype, f);
}

fx_status layout(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  return dispatch_loading(
      y->dtype, [&](auto ty) { return dispatch_loading(x->dtype, [&](auto tx) { return copy<decltype(ty), decltype(tx)>(ctx, y, x); }); });
}

// ---- fill, sum_batch ----

fx_status fill(fx_ctx* ctx, const fx_tensor* y, float value) {
  return dispatch(y->dtype, [&](auto t) {
    using T = decltype(t);
    Rows<1> rows({y});
    bool stream = streamed(y);
    rows.run(ctx, [&](const Rows<1>::Piece& p) {
      for_lanes(p.n, [&](int64_t i, int64_t lanes) { write_some(data<T>(y) + p.at[0] + i, splat(value), lanes, stream); });
    });
    return FX_STATUS_OK;
  });
}

template <class X, class Y>
fx_status sum_items(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, bool accumulate) {
  int64_t B = dy->shape[0];
  fx_tensor item = *dy;
  item.rank = dx->rank;
  for (int d = 0; d < item.rank; d++) item.shape[d] = dy->shape[d + 1], item.strides[d] = dy->strides[d + 1];
  Rows<2> rows({dx, &item});
  bool stream = !accumulate && streamed(dx);
  rows.run(ctx, [&](const Rows<2>::Piece& p) {
    X* dxp = data<X>(dx) + p.at[0];
    const Y* dyp = data<Y>(dy) + p.at[1];
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf total{};
      for (int64_t b = 0; b < B; b++) total += load_some(dyp + b * dy->strides[0] + i, lanes);
      if (accumulate) total += load_some(dxp + i, lanes);
      write_some(dxp + i, total, lanes, stream);
    });
  });
  return FX_STATUS_OK;
}

fx_status sum_batch(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, int32_t accumulate) {
  return dispatch(dx->dtype, [&](auto tx) {
    return dispatch(dy->dtype, [&](auto ty) { return sum_items<decltype(tx), decltype(ty)>(ctx, dx, dy, accumulate != 0); });
  });
}

}  // namespace

void add_layout(fx_ops* ops) {
  ops->pack = pack;
  ops->unpack = unpack;
  ops->layout = layout;
  ops->fill = fill;
  ops->sum_batch = sum_batch;
}

}  // namespace fx::FX_TIER
