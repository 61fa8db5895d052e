// conv2d.cpp: convolution of [B,Y,X,C] images and its backward. The images are cut into slices that only the shape decides: a few images,
// or a band of rows of one; a slice is the work of one thread and of one oneDNN primitive. So the bits do not depend on the number of
// threads, whichever implementation oneDNN picks: some of its own do.
#include "core/stage.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kSlices = 16;              // of y forward, of dx backward
constexpr int64_t kSumSlices = 8;            // of the pixels that dw sums over: each costs one more pass over dw
constexpr int64_t kPartialBytes = 64 << 20;  // the slices' sums of dw take no more than this
constexpr int64_t kBandRows = 4;             // least height of a band

ConvSpec geometry(ConvPass pass, const fx_tensor* x, const fx_tensor* w, const fx_tensor* y, const fx_conv2d_args* a) {
  ConvSpec s{};
  s.pass = pass;
  s.batch = x->shape[0], s.in_y = x->shape[1], s.in_x = x->shape[2], s.in_c = x->shape[3];
  s.out_y = y->shape[1], s.out_x = y->shape[2], s.out_c = y->shape[3];
  s.ky = w->shape[2], s.kx = w->shape[3];
  s.stride = a->stride, s.pad_top = a->pad_top, s.pad_left = a->pad_left, s.pad_bottom = a->pad_bottom, s.pad_right = a->pad_right;
  s.dtype = compute_dtype(x->dtype);
  return s;
}

bool empty(const fx_tensor* t) { return row_count(t) == 0 || t->shape[t->rank - 1] == 0; }

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the pixels are cut: `images` whole images a slice while there are enough of them, else bands of `rows` rows of one image. Rows are
// those of y, backward data: of x.
struct Cut {
  int64_t height, images, rows, bands, slices;

  Cut(const ConvSpec& s, int64_t wanted) {
    height = s.pass == kConvBackwardData ? s.in_y : s.out_y;
    images = s.batch > wanted ? divide_up(s.batch, wanted) : 1;
    bands = divide_up(wanted, s.batch);
    if (images > 1 || s.pad_top >= s.ky || s.pad_bottom >= s.ky) bands = 1;  // a band must not lie in the padding
    rows = most(divide_up(height, bands), least(kBandRows, height));
    bands = divide_up(height, rows);
    slices = divide_up(s.batch, images) * bands;
  }
};

// One slice: its own small convolution, and where its pixels begin. Activations that oneDNN does not take as they are are copied slice by
// slice.
struct Slice {
  ConvSpec spec;
  int64_t x_first, y_first;  // pixels, counted over all images

  int64_t x_pixels() const { return spec.batch * spec.in_y * spec.in_x; }
  int64_t y_pixels() const { return spec.batch * spec.out_y * spec.out_x; }

  Slice(const ConvSpec& s, const Cut& cut, int64_t slice) : spec(s) {
    int64_t b = slice / cut.bands * cut.images, row = slice % cut.bands * cut.rows, x_row = row, y_row = row;
    spec.batch = least(s.batch - b, cut.images);
    int64_t rows = least(cut.height - row, cut.rows);
    if (s.pass == kConvBackwardData) y_row = band_of_x(s, row, rows);
    else x_row = band_of_y(s, row, rows);
    x_first = (b * s.in_y + x_row) * s.in_x;
    y_first = (b * s.out_y + y_row) * s.out_x;
  }

  // Rows [row, row + rows) of y and the rows of x they are made from; returns the first of these.
  int64_t band_of_y(const ConvSpec& s, int64_t row, int64_t rows) {
    int64_t first = row * s.stride - s.pad_top, last = (row + rows - 1) * s.stride - s.pad_top + s.ky;  // padding included
    spec.pad_top = most(-first, 0);
    spec.pad_bottom = most(last - s.in_y, 0);
    spec.in_y = least(last, s.in_y) - most(first, 0);
    spec.out_y = rows;
    return most(first, 0);
  }

  // Rows [row, row + rows) of x and the rows of y they go into; returns the first of these. There may be none, where the stride leaves rows
  // out.
  int64_t band_of_x(const ConvSpec& s, int64_t row, int64_t rows) {
    int64_t top = row + s.pad_top;  // in rows of the padded image
    int64_t first = least(divide_up(most(top - s.ky + 1, 0), s.stride), top / s.stride);
    int64_t last = least((top + rows - 1) / s.stride + 1, s.out_y);
    spec.pad_top = top - first * s.stride;
    spec.pad_bottom = most((last - 1) * s.stride + s.ky - (top + rows), 0);
    spec.in_y = rows;
    spec.out_y = most(last - first, 0);
    return first;
  }
};

// The packed copies of w that the slices' plans want: one, unless oneDNN prefers another layout for the first or last band.
class Packs {
 public:
  void add(Arena& arena, const Plan* plan) {
    if (plan_pack_bytes(plan) == 0 || find(plan) < count_) return;
    plans_[count_] = plan;
    offsets_[count_++] = arena.add(plan_pack_bytes(plan));
  }
  bool fill(const Arena& arena, void* w, int threads) const {
    for (int i = 0; i < count_; i++)
      if (!plan_pack(plans_[i], w, arena.at(offsets_[i]), threads)) return false;
    return true;
  }
  void* get(const Arena& arena, const Plan* plan, void* w) const {
    int i = find(plan);
    return i < count_ ? arena.at(offsets_[i]) : w;
  }

 private:
  int find(const Plan* plan) const {
    int i = 0;
    while (i < count_ && !plan_packs_alike(plan, plans_[i])) i++;
    return i;
  }
  static constexpr int kMost = 8;  // a cut has at most four kinds of slices: first, middle, last, and with fewer images
  const Plan* plans_[kMost];
  int64_t offsets_[kMost];
  int count_ = 0;
};

// One pass over all slices: its plans, and a thread's memory: copies of a slice of x and of y, and what the plan needs.
struct Passes {
  ConvSpec whole;
  Sliced x, y;
  Cut cut;
  int64_t plans, x_bytes, y_bytes, work_bytes, work;

  Passes(fx_ctx* ctx, Arena& arena, const ConvSpec& spec, const fx_tensor* tx, const fx_tensor* ty, int64_t slices, Packs* packs)
      : whole(spec), x(tx, fx_dtype(spec.dtype)), y(ty, fx_dtype(spec.dtype)), cut(spec, slices), x_bytes(0), y_bytes(0), work_bytes(0) {
    plans = arena.add(cut.slices * int64_t(sizeof(Plan*)));
    for (int64_t i = 0; i < cut.slices; i++) {
      Slice slice(whole, cut, i);
      x_bytes = most(x_bytes, x.copy_bytes(slice.x_pixels())), y_bytes = most(y_bytes, y.copy_bytes(slice.y_pixels()));
      if (slice.spec.out_y == 0) continue;
      const Plan* plan = conv_plan(ctx, slice.spec);
      work_bytes = most(work_bytes, plan_bytes(plan));
      if (packs) packs->add(arena, plan);
    }
    work_bytes += x_bytes + y_bytes;
    work = arena.add(work_bytes * ctx->threads);
  }

  // run(i, plan, x, y, work) for every slice, plan NULL where no pixel of y belongs to it; its inputs are read before, its output is
  // written after. False when a run failed.
  template <class F>
  bool run(fx_ctx* ctx, const Arena& arena, const F& f) const {
    const Plan** list = arena.at<const Plan*>(plans);
    for (int64_t i = 0; i < cut.slices; i++) {
      Slice slice(whole, cut, i);
      list[i] = slice.spec.out_y == 0 ? nullptr : conv_plan(ctx, slice.spec);
    }
    int failures = 0;
    parallel_for_dynamic(ctx, cut.slices, [&](int64_t i) {
      Slice slice(whole, cut, i);
      char *x_copy = arena.at(work + thread_index() * work_bytes), *y_copy = x_copy + x_bytes;
      if (whole.pass != kConvBackwardData) x.read(slice.x_first, slice.x_pixels(), x_copy);
      if (whole.pass != kConvForward) y.read(slice.y_first, slice.y_pixels(), y_copy);
      void *px = x.at(slice.x_first, x_copy), *py = y.at(slice.y_first, y_copy);
      if (!list[i]) memset(px, 0, size_t(x.bytes(slice.x_pixels())));
      else if (!f(i, list[i], px, py, y_copy + y_bytes)) __atomic_store_n(&failures, 1, __ATOMIC_RELAXED);
      if (whole.pass == kConvForward) y.write(slice.y_first, slice.y_pixels(), y_copy);
      if (whole.pass == kConvBackwardData) x.write(slice.x_first, slice.x_pixels(), x_copy);
    });
    return failures == 0;
  }
};

// Forward, or backward data; y is written forward, x backward.
fx_status run(fx_ctx* ctx, const char* op, const ConvSpec& whole, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b,
              const fx_tensor* y) {
  Arena arena;
  Staged ws = stage(arena, w, fx_dtype(whole.dtype), true), bs = stage(arena, b, fx_dtype(whole.dtype), true);
  Packs packs;
  Passes passes(ctx, arena, whole, x, y, kSlices, &packs);
  arena.open(ctx);
  place(ctx, arena, ws), place(ctx, arena, bs);
  bool done = packs.fill(arena, ws.view.data, ctx->threads) &&
              passes.run(ctx, arena, [&](int64_t, const Plan* plan, void* px, void* py, char* work) {
                return plan_run(plan, px, packs.get(arena, plan, ws.view.data), b ? bs.view.data : nullptr, py, work);
              });
  return done ? FX_STATUS_OK : fail(ctx, FX_STATUS_DEVICE, "%s: oneDNN could not run the convolution", op);
}

fx_status conv2d_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b,
                         const fx_conv2d_args* args) {
  if (empty(w)) return FX_STATUS_OK;
  ConvSpec spec = geometry(kConvForward, x, w, y, args);
  spec.bias = b != nullptr;
  return run(ctx, "conv2d_forward", spec, x, w, b, y);
}

fx_status input_gradient(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* w, const fx_conv2d_args* args) {
  return run(ctx, "conv2d_backward", geometry(kConvBackwardData, dx, w, dy, args), dx, w, nullptr, dy);
}

// dw += over all pixels: each slice has sums of its own, which are added in order.
fx_status weight_gradient(fx_ctx* ctx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* x, const fx_conv2d_args* args) {
  int64_t n = dw->shape[0] * dw->shape[1] * dw->shape[2] * dw->shape[3];
  Arena arena;
  Passes passes(ctx, arena, geometry(kConvBackwardWeights, x, dw, dy, args), x, dy, most(1, least(kSumSlices, kPartialBytes / (n * 4))),
                nullptr);
  int64_t partial = arena.add(passes.cut.slices * n * 4);
  arena.open(ctx);
  bool done = passes.run(ctx, arena, [&](int64_t i, const Plan* plan, void* px, void* py, char* work) {
    return plan_run(plan, px, arena.at<float>(partial) + i * n, nullptr, py, work);
  });
  if (!done) return fail(ctx, FX_STATUS_DEVICE, "conv2d_backward: oneDNN could not run the convolution");
  add_partials(ctx, data<float>(dw), arena.at<float>(partial), passes.cut.slices, n);
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
