// product.h: products of matrices cut into a grid of tiles that only the shape decides; a tile is the work of one thread and of one oneDNN
// primitive. So the bits do not depend on the number of threads, whichever implementation oneDNN picks: some of its own split one sum
// between threads.
#pragma once
#include "stage.h"

namespace fx::FX_TIER {

constexpr int64_t kTileRows = 512;  // of c: the packing of b is repeated for each
constexpr int64_t kTileColumns = 256;
constexpr int64_t kScratchRow = kTileColumns + 16;  // elements: rows of a tile in scratch do not share a cache set
constexpr int64_t kPackRows = 64;                   // from here on a packed copy of b pays
constexpr int64_t kSliceTerms = 256;                // least length of a part of dw's sums
constexpr int64_t kSlices = 4;                      // most parts of a batch matrix: each costs one more pass over dw
constexpr int64_t kSumTasks = 8;                    // tiles times parts that are enough

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
inline void merge(RowBatch& a, RowBatch& b) {
  if (a.mergeable() && b.mergeable()) {
    a.merge();
    b.merge();
  }
}

// oneDNN wants rows that do not overlap: an operand broadcast over its rows is copied.
inline bool overlaps(const fx_tensor* t) {
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

inline Matrix matrix(const fx_tensor& t, const RowBatch& r) {
  return {static_cast<char*>(t.data), t.dtype == FX_DTYPE_F32 ? 4 : 2, r.batch_stride, r.row_stride, 1};
}

inline Matrix transposed(Matrix m) { return {m.data, m.size, m.step, m.col, m.row}; }

// The leading dimension of `lines` lines of `length` elements; the stride of a single line is free, but oneDNN wants it no smaller than the
// line.
inline int64_t leading(int64_t stride, int64_t lines, int64_t length) { return lines == 1 && stride < length ? length : stride; }

// c [m,n] = a [m,k] · b [k,n] + bias for every matrix of a batch, or c += that; or, when `sum` is set, c += the sum of a · b over the
// batch.
struct Product {
  int64_t batch, m, n, k;
  Matrix a, b, c;
  char* bias;
  fx_dtype dtype, c_dtype;
  bool biased, sum, accumulate;
  bool scratch;  // c is a tile of f32 in the thread's scratch: what follows reads it there
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

inline const Plan* tile_plan(fx_ctx* ctx, const Product& p, const Tile& t) {
  MatmulSpec s{};
  s.m = t.rows, s.n = t.columns, s.k = t.terms;
  s.a_row = p.a.col == 1 ? leading(p.a.row, t.rows, t.terms) : 1;
  s.a_col = p.a.col == 1 ? 1 : leading(p.a.col, t.terms, t.rows);
  s.b_row = p.b.col == 1 ? leading(p.b.row, t.terms, t.columns) : 1;
  s.b_col = p.b.col == 1 ? 1 : leading(p.b.col, t.columns, t.terms);
  s.c_row = p.scratch ? kScratchRow : leading(p.c.row, t.rows, t.columns);
  s.dtype = p.dtype, s.c_dtype = p.c_dtype;
  s.bias = p.biased;
  s.accumulate = p.accumulate || (p.sum && t.slice == 0);
  s.pack = !p.sum && t.rows >= kPackRows;
  return matmul_plan(ctx, s);
}

// One product on its way: its grid and where its memory is. The matrices' addresses are set once the arena is open.
struct Multiply {
  Product p;
  Grid grid;
  int64_t plans, partial;             // offsets in the arena
  int64_t scratch_bytes, work_bytes;  // of one thread: the tile, and all

  Multiply(fx_ctx* ctx, Arena& arena, const Product& product)
      : p(product), grid(product), plans(arena.add(grid.tasks * int64_t(sizeof(Plan*)))), partial(arena.add(grid.partial_bytes(product))) {
    scratch_bytes = work_bytes = p.scratch ? kTileRows * kScratchRow * 4 : 0;
    for (int64_t task = 0; task < grid.tasks; task++) {
      int64_t bytes = scratch_bytes + plan_bytes(tile_plan(ctx, p, Tile(p, grid, task)));
      work_bytes = bytes > work_bytes ? bytes : work_bytes;
    }
  }

  // Looks the plans up, before the parallel region.
  void prepare(fx_ctx* ctx, const Arena& arena) const {
    for (int64_t task = 0; task < grid.tasks; task++) arena.at<const Plan*>(plans)[task] = tile_plan(ctx, p, Tile(p, grid, task));
  }

  // Runs one task in `work` (work_bytes), then finish(tile, u, stride of u's rows) with u the tile of c.
  template <class F>
  bool run(const Arena& arena, int64_t task, char* work, const F& finish) const {
    Tile t(p, grid, task);
    char* c = p.c.at(p.sum ? 0 : t.batch, t.i, t.j);
    if (p.scratch) c = work;
    if (p.sum && t.slice > 0) c = reinterpret_cast<char*>(arena.at<float>(partial) + ((t.slice - 1) * p.m + t.i) * p.n + t.j);
    char* bias = p.biased ? p.bias + t.j * p.b.size : nullptr;
    const Plan* plan = arena.at<const Plan*>(plans)[task];
    if (!plan_run(plan, p.a.at(t.batch, t.i, t.first), p.b.at(t.batch, t.first, t.j), bias, c, work + scratch_bytes)) return false;
    finish(t, reinterpret_cast<const float*>(c));
    return true;
  }
};

}  // namespace fx::FX_TIER
