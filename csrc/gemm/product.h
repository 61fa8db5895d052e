// product.h: products of matrices cut into a grid of tiles that only the shape decides; a tile is the work of one thread, by the kernels of
// this folder or by one oneDNN primitive. So the bits do not depend on the number of threads.
#pragma once
#include "../core/onednn.h"
#include "../core/stage.h"
#include "kernel.h"

namespace fx::FX_TIER {

constexpr int64_t kTileRows = 768;     // most rows of a tile: b is packed again for each
constexpr int64_t kTileColumns = 384;  // most columns: a is
constexpr int64_t kColumnUnit = 96;    // a multiple of every micro-kernel's width
constexpr int64_t kLeastRows = 96;
constexpr int64_t kTileRow = kTileColumns + 16;  // elements: rows of a tile in memory do not share a cache set
constexpr int64_t kTasks = 16;                   // tiles that are enough for as many threads
constexpr int64_t kSliceTerms = 256;             // least length of a part of dw's sums
constexpr int64_t kSlices = 4;                   // most parts of a batch matrix: each costs one more pass over dw
constexpr int64_t kPackRows = 64;                // from here on oneDNN is given a packed copy of b

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

// Both sides of a sum over rows merged, if both can be.
inline void merge(RowBatch& a, RowBatch& b) {
  if (a.mergeable() && b.mergeable()) {
    a.merge();
    b.merge();
  }
}

// A row-major or transposed matrix in memory: element (i,j) of matrix `batch` at data + batch·step + i·row + j·col.
struct Matrix {
  const void* data;
  int64_t step, row, col;

  template <class T>
  const T* at(int64_t batch, int64_t i, int64_t j) const {
    return static_cast<const T*>(data) + batch * step + i * row + j * col;
  }
};

inline Matrix matrix(const fx_tensor* t, const RowBatch& r) { return {t->data, r.batch_stride, r.row_stride, 1}; }

inline Matrix transposed(Matrix m) { return {m.data, m.step, m.col, m.row}; }

// a [m,k] · b [k,n] for every matrix of a batch, or, when `sum` is set, the sum of that over the batch.
struct Product {
  int64_t batch, m, n, k;
  Matrix a, b;
  fx_dtype dtype;
  bool sum;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The grid of a product. Slices exist in sums only: parts of k of one batch matrix.
struct Grid {
  int64_t rows, columns, tiles_m, tiles_n, slice_terms, per_batch, slices, tasks;

  explicit Grid(const Product& p)
      : rows(0), columns(0), tiles_m(0), tiles_n(0), slice_terms(p.k), per_batch(1), slices(p.batch > 0 ? p.batch : 1), tasks(0) {
    if (p.batch == 0 || p.m == 0 || p.n == 0) return;
    columns = round_up(divide_up(p.n, divide_up(p.n, kTileColumns)), kColumnUnit);
    tiles_n = divide_up(p.n, columns);
    int64_t parts = divide_up(p.m, kTileRows);
    while (parts * tiles_n * p.batch < kTasks && divide_up(p.m, 2 * parts) >= kLeastRows) parts *= 2;
    rows = round_up(divide_up(p.m, parts), kGroup);
    tiles_m = divide_up(p.m, rows);
    int64_t tiles = p.batch * tiles_m * tiles_n;
    if (p.sum && tiles < kTasks) {
      int64_t wanted = divide_up(kTasks, tiles), most = divide_up(p.k, kSliceTerms);
      most = most < kSlices ? most : kSlices;
      wanted = wanted < most ? wanted : most;
      slice_terms = divide_up(p.k, wanted > 0 ? wanted : 1);
      per_batch = slice_terms > 0 ? divide_up(p.k, slice_terms) : 1;
    }
    slices = p.batch * per_batch;
    tasks = slices * tiles_m * tiles_n;
  }
};

// One task: a tile of the product, for one batch matrix or slice.
struct Tile {
  int64_t batch, slice, i, rows, j, columns, first, terms;

  Tile(const Product& p, const Grid& g, int64_t task) {
    j = task % g.tiles_n * g.columns;
    columns = p.n - j < g.columns ? p.n - j : g.columns;
    i = task / g.tiles_n % g.tiles_m * g.rows;
    rows = p.m - i < g.rows ? p.m - i : g.rows;
    slice = task / (g.tiles_n * g.tiles_m);
    batch = slice / g.per_batch;
    first = slice % g.per_batch * g.slice_terms;
    terms = p.k - first < g.slice_terms ? p.k - first : g.slice_terms;
  }
};

// oneDNN wants rows that do not overlap.
inline bool onednn_takes(const Product& p) {
  auto apart = [](const Matrix& m, int64_t rows, int64_t columns) {
    return m.col == 1 ? rows == 1 || m.row >= columns : columns == 1 || m.col >= rows;
  };
  return (p.dtype == FX_DTYPE_F32 || onednn_bf16()) && p.k > 0 && apart(p.a, p.m, p.k) && apart(p.b, p.k, p.n);
}

inline const Plan* tile_plan(fx_ctx* ctx, const Product& p, const Tile& t) {
  auto leading = [](int64_t stride, int64_t lines, int64_t length) { return lines == 1 && stride < length ? length : stride; };
  MatmulSpec s{};
  s.m = t.rows, s.n = t.columns, s.k = t.terms;
  s.a_row = p.a.col == 1 ? leading(p.a.row, t.rows, t.terms) : 1;
  s.a_col = p.a.col == 1 ? 1 : leading(p.a.col, t.terms, t.rows);
  s.b_row = p.b.col == 1 ? leading(p.b.row, t.terms, t.columns) : 1;
  s.b_col = p.b.col == 1 ? 1 : leading(p.b.col, t.columns, t.terms);
  s.c_row = kTileRow;
  s.dtype = p.dtype;
  s.pack = !p.sum && t.rows >= kPackRows;
  return matmul_plan(ctx, s);
}

// One product on its way. The matrices' addresses are set once the arena is open.
struct Multiply {
  Product p;
  Grid grid;
  bool onednn;
  int64_t plans;                   // offset in the arena
  int64_t tile_bytes, work_bytes;  // of one thread: the tile, and all

  Multiply(fx_ctx* ctx, Arena& arena, const Product& product) : p(product), grid(product) {
    onednn = onednn_multiplies(p.dtype == FX_DTYPE_BF16) && onednn_takes(p);
    tile_bytes = grid.rows * kTileRow * 4, work_bytes = 0;
    plans = arena.add(onednn ? grid.tasks * int64_t(sizeof(Plan*)) : 0);
    for (int64_t task = 0; task < grid.tasks; task++) {
      Tile t(p, grid, task);
      int64_t bytes = tile_bytes + (onednn ? plan_bytes(tile_plan(ctx, p, t)) : gemm_work_bytes(t.columns));
      work_bytes = bytes > work_bytes ? bytes : work_bytes;
    }
  }

  // Looks the plans up, before the parallel region.
  void prepare(fx_ctx* ctx, const Arena& arena) const {
    for (int64_t task = 0; onednn && task < grid.tasks; task++) arena.at<const Plan*>(plans)[task] = tile_plan(ctx, p, Tile(p, grid, task));
  }

  // Runs one task in `work` (work_bytes), then finish(tile, u): rows of u are kTileRow apart.
  template <class F>
  bool run(const Arena& arena, int64_t task, char* work, const F& finish) const {
    Tile t(p, grid, task);
    float* u = reinterpret_cast<float*>(work);
    bool done = true;
    dispatch(p.dtype, [&](auto type) {
      using T = decltype(type);
      const T *a = p.a.at<T>(t.batch, t.i, t.first), *b = p.b.at<T>(t.batch, t.first, t.j);
      if (onednn) done = plan_run(arena.at<const Plan*>(plans)[task], const_cast<T*>(a), const_cast<T*>(b), nullptr, u, work + tile_bytes);
      else
        multiply(Operand<T>{a, p.a.row, p.a.col, t.rows, t.terms}, Operand<T>{b, p.b.col, p.b.row, t.columns, t.terms}, u, kTileRow,
                 work + tile_bytes);
      return fx_status(FX_STATUS_OK);
    });
    if (done) finish(t, u);
    return done;
  }
};

}  // namespace fx::FX_TIER
