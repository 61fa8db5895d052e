// linear.cpp: a product of matrices and what follows it. Forward, y = act(u) or residual + gate ⊙ u with u = x w^T + b is made from each
// tile of u while it is in the cache. Backward, one pass over dy makes du, the gradient at u, and the sums for db and dgate; then dx = du w
// and dw += du^T x run in one parallel region.
#include "core/activation.h"
#include "gemm/product.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kChunk = 64;     // rows of a chunk of the column sums: fixed, so that sums do not depend on the threads
constexpr int64_t kColumns = 512;  // columns a chunk is walked in: their sums stay in L1
constexpr int64_t kBlock = 1024;   // elements of a task of the final sums

// Walks rows [M] or [B,L] in order, from row `first` counted over all of them.
struct RowAt {
  int64_t item, row, rows;  // row of the item, rows an item has

  RowAt(const fx_tensor* t, int64_t first) {
    rows = t->shape[t->rank - 2];
    item = first / rows, row = first % rows;
  }
  void next() {
    if (++row == rows) item++, row = 0;
  }
  int64_t offset(const fx_tensor* t) const { return t->rank == 2 ? row * t->strides[0] : item * t->strides[0] + row * t->strides[1]; }
};

// ---- forward ----------------------------------------------------------------------------------------------------------------

struct Epilogue {
  const fx_tensor *y, *pre, *residual, *gate, *b;
  fx_act act;
};

// pre = u + b and y = f(u + b, residual, gate, i, lanes) for one tile; first: its first row, counted over all items.
template <class T, class F>
void finish_tile(const Epilogue& e, const Tile& t, int64_t first, const float* u, const F& f) {
  const T* b = e.b ? data<T>(e.b) + t.j : nullptr;
  RowAt at(e.y, first);
  for (int64_t r = 0; r < t.rows; r++, at.next(), u += kTileRow) {
    T* y = data<T>(e.y) + at.offset(e.y) + t.j;
    T* pre = e.pre ? data<T>(e.pre) + at.offset(e.pre) + t.j : nullptr;
    const T* residual = e.gate ? data<T>(e.residual) + at.offset(e.residual) + t.j : nullptr;
    const T* gate = e.gate ? data<T>(e.gate) + at.item * e.gate->strides[0] + t.j : nullptr;
    for_lanes(t.columns, [&](int64_t i, int64_t lanes) {
      vf v = load_some(u + i, lanes);
      if (b) v += load_some(b + i, lanes);
      if (pre) store_some(pre + i, v, lanes);
      store_some(y + i, f(v, residual, gate, i, lanes), lanes);
    });
  }
}

void finish(const Epilogue& e, const Tile& t, int64_t first, const float* u) {
  dispatch(e.y->dtype, [&](auto type) {
    using T = decltype(type);
    if (e.gate)
      finish_tile<T>(e, t, first, u, [](vf v, const T* residual, const T* gate, int64_t i, int64_t lanes) {
        return load_some(residual + i, lanes) + load_some(gate + i, lanes) * v;
      });
    else if (e.act == FX_ACT_SILU)
      finish_tile<T>(e, t, first, u, [](vf v, const T*, const T*, int64_t, int64_t) { return Silu::value(v); });
    else if (e.act == FX_ACT_GELU_TANH)
      finish_tile<T>(e, t, first, u, [](vf v, const T*, const T*, int64_t, int64_t) { return Gelu::value(v); });
    else finish_tile<T>(e, t, first, u, [](vf v, const T*, const T*, int64_t, int64_t) { return v; });
    return fx_status(FX_STATUS_OK);
  });
}

// u = x w^T.
Product forward_product(const fx_tensor* x, const fx_tensor* w) {
  RowBatch rows(x);
  if (rows.mergeable()) rows.merge();
  return {rows.batch, rows.rows, w->shape[0], w->shape[1], matrix(x, rows), transposed(matrix(w, RowBatch(w))), fx_dtype(x->dtype), false};
}

fx_status linear_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* pre, const fx_tensor* x, const fx_tensor* residual,
                         const fx_tensor* gate, const fx_tensor* w, const fx_tensor* b, fx_act act) {
  Arena arena;
  Multiply product(ctx, arena, forward_product(x, w));
  int64_t work = arena.add(product.work_bytes * ctx->threads);
  arena.open(ctx);
  product.prepare(ctx, arena);
  Epilogue e{y, pre, residual, gate, b, act};
  int failures = 0;
  parallel_for_dynamic(ctx, product.grid.tasks, [&](int64_t task) {
    bool ok = product.run(arena, task, arena.at(work) + thread_index() * product.work_bytes,
                          [&](const Tile& t, const float* u) { finish(e, t, t.batch * product.p.m + t.i, u); });
    if (!ok) __atomic_store_n(&failures, 1, __ATOMIC_RELAXED);
  });
  if (failures) return fail(ctx, FX_STATUS_DEVICE, "linear_forward: oneDNN could not run the product");
  return FX_STATUS_OK;
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

// The pass over dy: du where it is not dy itself, and sums over the rows of each chunk. Chunks do not cross items where there is a gate.
struct Pass {
  const fx_tensor *dy, *pre, *gate;
  fx_act act;
  fx_tensor du;              // data NULL: dy itself, or not wanted
  float *sums, *gate_sums;   // [chunks, O] or NULL
  int64_t items, rows, O;    // rows of an item; one item without a gate
  int64_t per_item, chunks;  // chunks

  Pass(const fx_tensor* grad, const fx_tensor* saved, const fx_tensor* gates, fx_act a) : dy(grad), pre(saved), gate(gates), act(a) {
    O = dy->shape[dy->rank - 1];
    items = gate ? dy->shape[0] : 1;
    rows = row_count(dy) / items;
    per_item = (rows + kChunk - 1) / kChunk;
    chunks = items * per_item;
    du = {}, sums = gate_sums = nullptr;
  }
};

// f(dy, pre, gate, i, lanes) is du.
template <class T, class F>
void pass_chunk(const Pass& w, int64_t chunk, const F& f) {
  int64_t item = chunk / w.per_item, from = chunk % w.per_item * kChunk, n = from + kChunk < w.rows ? kChunk : w.rows - from;
  for (int64_t start = 0; start < w.O; start += kColumns) {
    int64_t columns = start + kColumns < w.O ? kColumns : w.O - start;
    float* sums = w.sums ? w.sums + chunk * w.O + start : nullptr;
    float* gate_sums = w.gate_sums ? w.gate_sums + chunk * w.O + start : nullptr;
    if (sums) memset(sums, 0, size_t(columns) * 4);
    if (gate_sums) memset(gate_sums, 0, size_t(columns) * 4);
    const T* gate = w.gate ? data<T>(w.gate) + item * w.gate->strides[0] + start : nullptr;
    RowAt at(w.dy, item * w.rows + from);
    for (int64_t r = 0; r < n; r++, at.next()) {
      const T* dy = data<T>(w.dy) + at.offset(w.dy) + start;
      const T* pre = w.pre ? data<T>(w.pre) + at.offset(w.pre) + start : nullptr;
      T* du = w.du.data ? data<T>(&w.du) + at.offset(&w.du) + start : nullptr;
      for_lanes(columns, [&](int64_t i, int64_t lanes) {
        vf d = load_some(dy + i, lanes), saved = pre ? load_some(pre + i, lanes) : vf{}, g = f(d, saved, gate, i, lanes);
        if (du) store_some(du + i, g, lanes);
        if (sums) store_some(sums + i, load_some(sums + i, lanes) + g, lanes);
        if (gate_sums) store_some(gate_sums + i, load_some(gate_sums + i, lanes) + d * saved, lanes);
      });
    }
  }
}

template <class T>
void run_pass(fx_ctx* ctx, const Pass& w) {
  parallel_for(ctx, w.chunks, [&](int64_t chunk) {
    if (w.gate) pass_chunk<T>(w, chunk, [](vf d, vf, const T* gate, int64_t i, int64_t lanes) { return d * load_some(gate + i, lanes); });
    else if (w.act == FX_ACT_GELU_TANH)
      pass_chunk<T>(w, chunk, [](vf d, vf u, const T*, int64_t, int64_t) { return d * Gelu::derivative(u); });
    else if (w.act == FX_ACT_SILU) pass_chunk<T>(w, chunk, [](vf d, vf u, const T*, int64_t, int64_t) { return d * Silu::derivative(u); });
    else pass_chunk<T>(w, chunk, [](vf d, vf, const T*, int64_t, int64_t) { return d; });
  });
}

// out[i] = the sum of partial[j·step + i] over j < count, in order, or += that, for a block of n elements.
template <class T>
void sum_block(T* out, bool add, const float* partial, int64_t count, int64_t step, int64_t n) {
  for_lanes(n, [&](int64_t i, int64_t lanes) {
    vf total{};
    for (int64_t j = 0; j < count; j++) total += load_some(partial + j * step + i, lanes);
    store_some(out + i, add ? load_some(out + i, lanes) + total : total, lanes);
  });
}

// dw += its partial sums, db += and dgate = those of the pass.
void add_sums(fx_ctx* ctx, const Pass& w, const fx_tensor* dgate, const fx_tensor* dw, const float* partial, int64_t slices,
              const fx_tensor* db) {
  int64_t size = dw && slices > 1 ? dw->shape[0] * dw->shape[1] : 0;
  int64_t blocks = (w.O + kBlock - 1) / kBlock, dw_tasks = (size + kBlock - 1) / kBlock, db_tasks = db ? blocks : 0;
  int64_t dgate_tasks = dgate ? w.items * blocks : 0;
  auto length = [](int64_t start, int64_t n) { return start + kBlock < n ? kBlock : n - start; };
  parallel_for(ctx, dw_tasks + db_tasks + dgate_tasks, [&](int64_t task) {
    if (task < dw_tasks) {
      int64_t start = task * kBlock;
      sum_block(data<float>(dw) + start, true, partial + start, slices - 1, size, length(start, size));
      return;
    }
    task -= dw_tasks;
    if (task < db_tasks) {
      int64_t start = task * kBlock;
      sum_block(data<float>(db) + start, true, w.sums + start, w.chunks, w.O, length(start, w.O));
      return;
    }
    task -= db_tasks;
    int64_t item = task / blocks, start = task % blocks * kBlock;
    dispatch(dgate->dtype, [&](auto t) {
      sum_block(data<decltype(t)>(dgate) + item * dgate->strides[0] + start, false, w.gate_sums + item * w.per_item * w.O + start,
                w.per_item, w.O, length(start, w.O));
      return fx_status(FX_STATUS_OK);
    });
  });
}

// dx = du w.
Product input_product(const fx_tensor* du, const fx_tensor* w) {
  RowBatch rows(du);
  if (rows.mergeable()) rows.merge();
  return {rows.batch, rows.rows, w->shape[1], w->shape[0], matrix(du, rows), matrix(w, RowBatch(w)), fx_dtype(du->dtype), false};
}

void finish_dx(const fx_tensor* dx, bool accumulate, const Tile& t, int64_t first, const float* u) {
  dispatch(dx->dtype, [&](auto type) {
    using T = decltype(type);
    RowAt at(dx, first);
    for (int64_t r = 0; r < t.rows; r++, at.next(), u += kTileRow) {
      T* out = data<T>(dx) + at.offset(dx) + t.j;
      for_lanes(t.columns, [&](int64_t i, int64_t lanes) {
        vf v = load_some(u + i, lanes);
        store_some(out + i, accumulate ? load_some(out + i, lanes) + v : v, lanes);
      });
    }
    return fx_status(FX_STATUS_OK);
  });
}

// dw += du^T x.
Product weight_product(const fx_tensor* dw, const fx_tensor* du, const fx_tensor* x) {
  RowBatch left(du), right(x);
  merge(left, right);
  return {left.batch, dw->shape[0], dw->shape[1], left.rows, transposed(matrix(du, left)), matrix(x, right), fx_dtype(du->dtype), true};
}

// Slice 0 adds to dw itself, the others write partial sums [slices - 1, m, n], which are added in order.
void finish_dw(const fx_tensor* dw, float* partial, const Product& p, const Tile& t, const float* u) {
  float* out = t.slice == 0 ? data<float>(dw) : partial + (t.slice - 1) * p.m * p.n;
  int64_t step = t.slice == 0 ? dw->strides[0] : p.n;
  for (int64_t r = 0; r < t.rows; r++, u += kTileRow) {
    float* row = out + (t.i + r) * step + t.j;
    for_lanes(t.columns, [&](int64_t i, int64_t lanes) {
      vf v = load_some(u + i, lanes);
      store_some(row + i, t.slice == 0 ? load_some(row + i, lanes) + v : v, lanes);
    });
  }
}

// A dense tensor like t, at an address set later.
fx_tensor dense_like(const fx_tensor* t) {
  fx_tensor d = *t;
  d.data = nullptr;
  int64_t stride = 1;
  for (int i = t->rank - 1; i >= 0; i--) d.strides[i] = stride, stride *= t->shape[i];
  return d;
}

fx_status linear_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dgate, const fx_tensor* dw, const fx_tensor* db,
                          const fx_tensor* dy, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* w, const fx_tensor* pre,
                          fx_act act, int32_t accumulate) {
  int64_t O = w->shape[0];
  bool own = (pre || gate) && (dx || dw);  // du has memory of its own
  Pass pass(dy, pre, gate, act);
  Arena arena;
  fx_tensor du = own ? dense_like(dy) : *dy;
  int64_t du_at = arena.add(own ? row_count(dy) * O * (dy->dtype == FX_DTYPE_F32 ? 4 : 2) : 0);
  Multiply by_w(ctx, arena, dx ? input_product(&du, w) : Product{}), by_x(ctx, arena, dw ? weight_product(dw, &du, x) : Product{});
  int64_t sums = arena.add(db ? pass.chunks * O * 4 : 0), gate_sums = arena.add(dgate ? pass.chunks * O * 4 : 0);
  int64_t partial = arena.add(dw ? (by_x.grid.slices - 1) * by_x.p.m * by_x.p.n * 4 : 0);
  int64_t work_bytes = by_w.work_bytes > by_x.work_bytes ? by_w.work_bytes : by_x.work_bytes;
  int64_t work = arena.add(work_bytes * ctx->threads);
  arena.open(ctx);
  if (db) pass.sums = arena.at<float>(sums);
  if (dgate) pass.gate_sums = arena.at<float>(gate_sums);
  if (own) pass.du = du, by_w.p.a.data = by_x.p.a.data = pass.du.data = arena.at(du_at);
  if (own || db || dgate)
    dispatch(dy->dtype, [&](auto t) {
      run_pass<decltype(t)>(ctx, pass);
      return fx_status(FX_STATUS_OK);
    });
  by_w.prepare(ctx, arena), by_x.prepare(ctx, arena);
  int failures = 0;
  parallel_for_dynamic(ctx, by_x.grid.tasks + by_w.grid.tasks, [&](int64_t task) {
    char* own_work = arena.at(work) + thread_index() * work_bytes;
    bool ok =
        task < by_x.grid.tasks
            ? by_x.run(arena, task, own_work, [&](const Tile& t, const float* u) { finish_dw(dw, arena.at<float>(partial), by_x.p, t, u); })
            : by_w.run(arena, task - by_x.grid.tasks, own_work,
                       [&](const Tile& t, const float* u) { finish_dx(dx, accumulate != 0, t, t.batch * by_w.p.m + t.i, u); });
    if (!ok) __atomic_store_n(&failures, 1, __ATOMIC_RELAXED);
  });
  if (failures) return fail(ctx, FX_STATUS_DEVICE, "linear_backward: oneDNN could not run the product");
  add_sums(ctx, pass, dgate, dw, arena.at<float>(partial), by_x.grid.slices, db);
  return FX_STATUS_OK;
}

}  // namespace

void add_linear(fx_ops* ops) {
  ops->linear_forward = linear_forward;
  ops->linear_backward = linear_backward;
}

}  // namespace fx::FX_TIER
