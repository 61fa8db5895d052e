// conv2d.cpp: convolution of [B,Y,X,C] images and its backward. The arithmetic is oneDNN's. Forward and dx run on all threads: there no sum
// is split between threads. dw sums over all pixels, which oneDNN does split, so the pixels are cut here into slices fixed by the shape,
// each the work of one thread.
#include "core/stage.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kSlices = 8;
constexpr int64_t kPartialBytes = 64 << 20;  // the slices' sums of dw take no more than this

ConvSpec geometry(ConvPass pass, const fx_tensor* x, const fx_tensor* w, const fx_tensor* y, const fx_conv2d_args* a, int64_t threads) {
  ConvSpec s{};
  s.pass = pass;
  s.batch = x->shape[0], s.in_y = x->shape[1], s.in_x = x->shape[2], s.in_c = x->shape[3];
  s.out_y = y->shape[1], s.out_x = y->shape[2], s.out_c = y->shape[3];
  s.ky = w->shape[2], s.kx = w->shape[3];
  s.stride = a->stride, s.pad_top = a->pad_top, s.pad_left = a->pad_left, s.pad_bottom = a->pad_bottom, s.pad_right = a->pad_right;
  s.dtype = x->dtype;
  s.threads = threads;
  return s;
}

bool empty(const fx_tensor* t) { return row_count(t) == 0 || t->shape[t->rank - 1] == 0; }

fx_status library_failed(fx_ctx* ctx, const char* op) {
  return fail(ctx, FX_STATUS_DEVICE, "%s: oneDNN could not run the convolution", op);
}

fx_status conv2d_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b,
                         const fx_conv2d_args* args) {
  if (empty(w)) return FX_STATUS_OK;
  fx_dtype dtype = compute_dtype(x->dtype);
  Arena arena;
  Staged xs = stage(arena, x, dtype, true), ws = stage(arena, w, dtype, true), bs = stage(arena, b, dtype, true),
         ys = stage(arena, y, dtype, true);
  ConvSpec spec = geometry(kConvForward, &xs.view, w, y, args, ctx->threads);
  spec.bias = b != nullptr;
  const Plan* plan = conv_plan(ctx, spec);
  int64_t work = arena.add(plan_bytes(plan));
  arena.open(ctx);
  place(ctx, arena, xs, true), place(ctx, arena, ws, true), place(ctx, arena, bs, true), place(ctx, arena, ys, false);
  if (!plan_run(plan, xs.view.data, ws.view.data, bs.view.data, ys.view.data, arena.at(work))) return library_failed(ctx, "conv2d_forward");
  unstage(ctx, ys);
  return FX_STATUS_OK;
}

fx_status input_gradient(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* w, const fx_conv2d_args* args) {
  fx_dtype dtype = compute_dtype(dy->dtype);
  Arena arena;
  Staged dxs = stage(arena, dx, dtype, true), ws = stage(arena, w, dtype, true), dys = stage(arena, dy, dtype, true);
  const Plan* plan = conv_plan(ctx, geometry(kConvBackwardData, &dxs.view, w, dy, args, ctx->threads));
  int64_t work = arena.add(plan_bytes(plan));
  arena.open(ctx);
  place(ctx, arena, dxs, false), place(ctx, arena, ws, true), place(ctx, arena, dys, true);
  if (!plan_run(plan, dxs.view.data, ws.view.data, nullptr, dys.view.data, arena.at(work))) return library_failed(ctx, "conv2d_backward");
  unstage(ctx, dxs);
  return FX_STATUS_OK;
}

// How the pixels are cut for dw: whole images while there are enough of them, else rows of dy of one image.
struct Cut {
  int64_t images, rows, per_image, slices;

  explicit Cut(const ConvSpec& s) {
    int64_t bytes = s.out_c * s.in_c * s.ky * s.kx * 4;
    int64_t wanted = kPartialBytes / bytes < kSlices ? kPartialBytes / bytes : kSlices;
    if (wanted < 1) wanted = 1;
    images = s.batch > wanted ? (s.batch + wanted - 1) / wanted : 1;
    per_image = images > 1 ? 1 : (wanted + s.batch - 1) / s.batch;
    rows = (s.out_y + per_image - 1) / per_image;
    per_image = (s.out_y + rows - 1) / rows;
    slices = (s.batch + images - 1) / images * per_image;
  }
};

// One slice: its own small convolution, and where its first pixels are.
struct Slice {
  ConvSpec spec;
  int64_t x_offset, y_offset;  // elements

  Slice(const ConvSpec& s, const Cut& cut, int64_t slice) : spec(s) {
    int64_t b = slice / cut.per_image * cut.images, row = slice % cut.per_image * cut.rows;
    spec.batch = s.batch - b < cut.images ? s.batch - b : cut.images;
    spec.out_y = s.out_y - row < cut.rows ? s.out_y - row : cut.rows;
    int64_t first = row * s.stride - s.pad_top, last = (row + spec.out_y - 1) * s.stride - s.pad_top + s.ky;  // rows of x, padding included
    if (first < 0) spec.pad_top = -first, first = 0;
    else spec.pad_top = 0;
    if (last > s.in_y) spec.pad_bottom = last - s.in_y, last = s.in_y;
    else spec.pad_bottom = 0;
    spec.in_y = last - first;
    x_offset = (b * s.in_y + first) * s.in_x * s.in_c;
    y_offset = (b * s.out_y + row) * s.out_x * s.out_c;
  }
  bool only_padding() const { return spec.in_y <= 0; }
};

// dw += over all pixels, with the same bits at any number of threads.
fx_status weight_gradient(fx_ctx* ctx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* x, const fx_conv2d_args* args) {
  fx_dtype dtype = compute_dtype(dy->dtype);
  int64_t n = dw->shape[0] * dw->shape[1] * dw->shape[2] * dw->shape[3], size = dtype == FX_DTYPE_F32 ? 4 : 2, most = 0;
  Arena arena;
  Staged xs = stage(arena, x, dtype, true), dys = stage(arena, dy, dtype, true);
  ConvSpec whole = geometry(kConvBackwardWeights, &xs.view, dw, dy, args, 1);
  Cut cut(whole);
  int64_t plans = arena.add(cut.slices * int64_t(sizeof(Plan*))), partial = arena.add(cut.slices * n * 4);
  for (int64_t i = 0; i < cut.slices; i++) {
    Slice slice(whole, cut, i);
    int64_t bytes = slice.only_padding() ? 0 : plan_bytes(conv_plan(ctx, slice.spec));
    most = bytes > most ? bytes : most;
  }
  int64_t work = arena.add(most * ctx->threads);
  arena.open(ctx);
  place(ctx, arena, xs, true), place(ctx, arena, dys, true);
  const Plan** list = arena.at<const Plan*>(plans);
  for (int64_t i = 0; i < cut.slices; i++) {
    Slice slice(whole, cut, i);
    list[i] = slice.only_padding() ? nullptr : conv_plan(ctx, slice.spec);
  }
  int failures = 0;
  parallel_for_dynamic(ctx, cut.slices, [&](int64_t i) {
    Slice slice(whole, cut, i);
    float* out = arena.at<float>(partial) + i * n;
    if (!list[i]) {
      memset(out, 0, size_t(n) * 4);
      return;
    }
    char* px = static_cast<char*>(xs.view.data) + slice.x_offset * size;
    char* py = static_cast<char*>(dys.view.data) + slice.y_offset * size;
    if (!plan_run(list[i], px, out, nullptr, py, arena.at(work + thread_index() * most))) __atomic_store_n(&failures, 1, __ATOMIC_RELAXED);
  });
  if (failures) return library_failed(ctx, "conv2d_backward");
  add_partials(ctx, data<float>(dw), arena.at<float>(partial), cut.slices, n);
  return FX_STATUS_OK;
}

fx_status conv2d_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                          const fx_tensor* x, const fx_tensor* w, const fx_conv2d_args* args) {
  if (empty(w)) return FX_STATUS_OK;
  fx_status status = FX_STATUS_OK;
  if (dx) status = input_gradient(ctx, dx, dy, w, args);
  if (dw && status == FX_STATUS_OK) status = weight_gradient(ctx, dw, dy, x, args);
  if (db && status == FX_STATUS_OK) status = add_bias_gradient(ctx, db, dy);
  return status;
}

}  // namespace

void add_conv2d(fx_ops* ops) {
  ops->conv2d_forward = conv2d_forward;
  ops->conv2d_backward = conv2d_backward;
}

}  // namespace fx::FX_TIER
