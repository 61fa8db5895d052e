// linear.cpp: y = act(x w^T + b), dx = dy w, dw += dy^T x, db += sum dy. Each is one product of matrices, cut into a grid of tiles that
// only the shape decides; a tile is the work of one thread and of one oneDNN primitive. So the bits do not depend on the number of threads,
// whichever implementation oneDNN picks: some of its own split one sum between threads.
#include "core/stage.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kTileRows = 512;  // of c: the packing of b is repeated for each
constexpr int64_t kTileColumns = 256;
constexpr int64_t kPackRows = 64;     // from here on a packed copy of b pays
constexpr int64_t kSliceTerms = 256;  // least length of a part of dw's sums
constexpr int64_t kSlices = 4;        // most parts of a batch matrix: each costs one more pass over dw
constexpr int64_t kSumTasks = 8;      // tiles times parts that are enough

// [M,I] or [B,L,I] as batch matrices of rows; one matrix where the batch can be walked with the row stride.
struct RowBatch {
  int64_t batch, rows, batch_stride, row_stride;

  explicit RowBatch(const fx_tensor* t) {
    batch = t->rank == 2 ? 1 : t->shape[0];
    rows = t->shape[t->rank - 2];
    batch_stride = t->rank == 2 ? 0 : t->strides[0];
    row_stride = t->strides[t->rank - 2];
    if (rows == 1 && batch > 1) {  // one row each: the batch is the rows
      rows = batch;
      batch = 1;
      row_stride = batch_stride;
    }
  }
  bool mergeable() const { return batch == 1 || batch_stride == rows * row_stride; }
  void merge() {
    rows *= batch;
    batch = 1;
  }
};

// Both sides of a product merged, if both can be.
void merge(RowBatch& a, RowBatch& b) {
  if (a.mergeable() && b.mergeable()) {
    a.merge();
    b.merge();
  }
}

// oneDNN wants rows that do not overlap: an operand broadcast over its rows is copied.
bool overlaps(const fx_tensor* t) {
  int64_t rows = t->shape[t->rank - 2];
  return (rows > 1 && t->strides[t->rank - 2] < t->shape[t->rank - 1]) || (rows == 1 && t->rank == 3 && t->strides[0] < t->shape[2]);
}

// A row-major or transposed matrix in memory: element (i,j) of matrix `batch` at data + batch·step + i·row + j·col.
struct Matrix {
  char* data;
  int64_t size;  // bytes of an element
  int64_t step, row, col;

  char* at(int64_t batch, int64_t i, int64_t j) const { return data + (batch * step + i * row + j * col) * size; }
};

Matrix matrix(const fx_tensor& t, const RowBatch& r) {
  return {static_cast<char*>(t.data), t.dtype == FX_DTYPE_F32 ? 4 : 2, r.batch_stride, r.row_stride, 1};
}

Matrix transposed(Matrix m) { return {m.data, m.size, m.step, m.col, m.row}; }

// The leading dimension of `lines` lines of `length` elements; the stride of a single line is free, but oneDNN wants it no smaller than the
// line.
int64_t leading(int64_t stride, int64_t lines, int64_t length) { return lines == 1 && stride < length ? length : stride; }

// c [m,n] = act(a [m,k] · b [k,n] + bias) for every matrix of a batch; or, when `sum` is set, c += the sum of a · b over the batch.
struct Product {
  int64_t batch, m, n, k;
  Matrix a, b, c;
  char* bias;
  fx_dtype dtype, c_dtype;
  fx_act act;
  bool sum;
};

// The grid of a product. Slices exist in sums only: parts of k of one batch matrix; slice 0 adds to c itself, the others write partial sums
// [slices - 1, m, n], which are added in order.
struct Grid {
  int64_t tiles_m, tiles_n, slice_terms, per_batch, slices, tasks;

  explicit Grid(const Product& p) {
    tiles_m = (p.m + kTileRows - 1) / kTileRows;
    tiles_n = (p.n + kTileColumns - 1) / kTileColumns;
    slice_terms = p.k;
    per_batch = 1;
    if (p.sum) {
      int64_t wanted = (kSumTasks + p.batch * tiles_m * tiles_n - 1) / (p.batch * tiles_m * tiles_n);
      int64_t most = (p.k + kSliceTerms - 1) / kSliceTerms;
      most = most < kSlices ? most : kSlices;
      wanted = wanted < most ? wanted : most;
      slice_terms = (p.k + wanted - 1) / wanted;
      per_batch = (p.k + slice_terms - 1) / slice_terms;
    }
    slices = p.batch * per_batch;
    tasks = slices * tiles_m * tiles_n;
  }
  int64_t partial_bytes(const Product& p) const { return p.sum ? (slices - 1) * p.m * p.n * 4 : 0; }
};

// One task: a tile of c, for one batch matrix or slice.
struct Tile {
  int64_t batch, slice, i, rows, j, columns, first, terms;

  Tile(const Product& p, const Grid& g, int64_t task) {
    j = task % g.tiles_n * kTileColumns;
    columns = p.n - j < kTileColumns ? p.n - j : kTileColumns;
    i = task / g.tiles_n % g.tiles_m * kTileRows;
    rows = p.m - i < kTileRows ? p.m - i : kTileRows;
    slice = task / (g.tiles_n * g.tiles_m);
    batch = slice / g.per_batch;
    first = slice % g.per_batch * g.slice_terms;
    terms = p.k - first < g.slice_terms ? p.k - first : g.slice_terms;
  }
};

const Plan* tile_plan(fx_ctx* ctx, const Product& p, const Tile& t) {
  MatmulSpec s{};
  s.m = t.rows, s.n = t.columns, s.k = t.terms;
  s.a_row = p.a.col == 1 ? leading(p.a.row, t.rows, t.terms) : 1;
  s.a_col = p.a.col == 1 ? 1 : leading(p.a.col, t.terms, t.rows);
  s.b_row = p.b.col == 1 ? leading(p.b.row, t.terms, t.columns) : 1;
  s.b_col = p.b.col == 1 ? 1 : leading(p.b.col, t.columns, t.terms);
  s.c_row = leading(p.c.row, t.rows, t.columns);
  s.dtype = p.dtype, s.c_dtype = p.c_dtype;
  s.act = p.act, s.bias = p.bias != nullptr;
  s.accumulate = p.sum && t.slice == 0;
  s.pack = !p.sum && t.rows >= kPackRows;
  return matmul_plan(ctx, s);
}

// Scratch bytes of one thread.
int64_t product_work(fx_ctx* ctx, const Product& p, const Grid& g) {
  int64_t most = 0;
  for (int64_t task = 0; task < g.tasks; task++) {
    int64_t bytes = plan_bytes(tile_plan(ctx, p, Tile(p, g, task)));
    most = bytes > most ? bytes : most;
  }
  return most;
}

// Runs the grid. partial: Grid::partial_bytes; work: ctx->threads times work_bytes.
bool multiply(fx_ctx* ctx, const Product& p, const Grid& g, const Plan** plans, float* partial, char* work, int64_t work_bytes) {
  for (int64_t task = 0; task < g.tasks; task++) plans[task] = tile_plan(ctx, p, Tile(p, g, task));
  int failures = 0;
  parallel_for_dynamic(ctx, g.tasks, [&](int64_t task) {
    Tile t(p, g, task);
    bool in_place = !p.sum || t.slice == 0;
    char* c = in_place ? p.c.at(p.sum ? 0 : t.batch, t.i, t.j) : reinterpret_cast<char*>(partial + ((t.slice - 1) * p.m + t.i) * p.n + t.j);
    char* bias = p.bias ? p.bias + t.j * p.b.size : nullptr;
    if (!plan_run(plans[task], p.a.at(t.batch, t.i, t.first), p.b.at(t.batch, t.first, t.j), bias, c, work + thread_index() * work_bytes))
      __atomic_store_n(&failures, 1, __ATOMIC_RELAXED);
  });
  if (failures) return false;
  if (p.sum) add_partials(ctx, reinterpret_cast<float*>(p.c.data), partial, g.slices - 1, p.m * p.n);
  return true;
}

// Completes the arena, gives p its addresses and runs it.
fx_status run(fx_ctx* ctx, const char* op, Arena& arena, Product& p, Staged& a, Staged& b, Staged* bias, Staged& c) {
  Grid g(p);
  int64_t work_bytes = product_work(ctx, p, g);
  int64_t plans = arena.add(g.tasks * int64_t(sizeof(Plan*))), partial = arena.add(g.partial_bytes(p)),
          work = arena.add(work_bytes * ctx->threads);
  arena.open(ctx);
  place(ctx, arena, a, true), place(ctx, arena, b, true), place(ctx, arena, c, false);
  if (bias) place(ctx, arena, *bias, true);
  p.a.data = static_cast<char*>(a.view.data), p.b.data = static_cast<char*>(b.view.data), p.c.data = static_cast<char*>(c.view.data);
  p.bias = bias ? static_cast<char*>(bias->view.data) : nullptr;
  if (!multiply(ctx, p, g, arena.at<const Plan*>(plans), arena.at<float>(partial), arena.at(work), work_bytes))
    return fail(ctx, FX_STATUS_DEVICE, "%s: oneDNN could not run the product", op);
  unstage(ctx, c);
  return FX_STATUS_OK;
}

fx_status linear_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b, fx_act act) {
  int64_t I = w->shape[1], O = w->shape[0];
  if (O == 0) return FX_STATUS_OK;
  fx_dtype dtype = compute_dtype(x->dtype);
  Arena arena;
  Staged xs = stage(arena, x, dtype, overlaps(x)), ws = stage(arena, w, dtype, overlaps(w)), bs = stage(arena, b, dtype, true);
  Staged ys = stage(arena, y, dtype, false);
  RowBatch in(&xs.view), out(&ys.view);
  merge(in, out);
  Product p{
      in.batch, in.rows, O,   I,    matrix(xs.view, in), transposed(matrix(ws.view, RowBatch(&ws.view))), matrix(ys.view, out), nullptr,
      dtype,    dtype,   act, false};
  return run(ctx, "linear_forward", arena, p, xs, ws, b ? &bs : nullptr, ys);
}

// dx = dy w.
fx_status input_gradient(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* w) {
  int64_t I = w->shape[1], O = w->shape[0];
  fx_dtype dtype = compute_dtype(dy->dtype);
  Arena arena;
  Staged dys = stage(arena, dy, dtype, overlaps(dy)), ws = stage(arena, w, dtype, overlaps(w)), dxs = stage(arena, dx, dtype, false);
  RowBatch in(&dys.view), out(&dxs.view);
  merge(in, out);
  Product p{in.batch, in.rows, I,           O,    matrix(dys.view, in), matrix(ws.view, RowBatch(&ws.view)), matrix(dxs.view, out), nullptr,
            dtype,    dtype,   FX_ACT_NONE, false};
  return run(ctx, "linear_backward", arena, p, dys, ws, nullptr, dxs);
}

// dw += dy^T x.
fx_status weight_gradient(fx_ctx* ctx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* x) {
  int64_t I = dw->shape[1], O = dw->shape[0];
  fx_dtype dtype = compute_dtype(dy->dtype);
  Arena arena;
  Staged dys = stage(arena, dy, dtype, overlaps(dy)), xs = stage(arena, x, dtype, overlaps(x)), dws = stage(arena, dw, FX_DTYPE_F32, false);
  RowBatch left(&dys.view), right(&xs.view);
  merge(left, right);
  Product p{left.batch,
            O,
            I,
            left.rows,
            transposed(matrix(dys.view, left)),
            matrix(xs.view, right),
            matrix(dws.view, RowBatch(&dws.view)),
            nullptr,
            dtype,
            FX_DTYPE_F32,
            FX_ACT_NONE,
            true};
  return run(ctx, "linear_backward", arena, p, dys, xs, nullptr, dws);
}

fx_status linear_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                          const fx_tensor* x, const fx_tensor* w) {
  fx_status status = FX_STATUS_OK;
  bool empty = w->shape[0] == 0 || w->shape[1] == 0;
  if (dx && !empty) status = input_gradient(ctx, dx, dy, w);
  if (dw && !empty && status == FX_STATUS_OK) status = weight_gradient(ctx, dw, dy, x);
  if (db && status == FX_STATUS_OK) status = add_bias_gradient(ctx, db, dy);
  return status;
}

}  // namespace

void add_linear(fx_ops* ops) {
  ops->linear_forward = linear_forward;
  ops->linear_backward = linear_backward;
}

}  // namespace fx::FX_TIER
