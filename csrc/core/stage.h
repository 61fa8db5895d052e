// stage.h: tensors as rows of contiguous elements: column sums in a fixed order, and copies of rows in another layout or dtype for a
// library.
#pragma once
#include "bf16.h"
#include "onednn.h"
#include "rows.h"

namespace fx::FX_TIER {

// Number of rows: the product of all dimensions but the last.
inline int64_t row_count(const fx_tensor* t) {
  int64_t n = 1;
  for (int i = 0; i < t->rank - 1; i++) n *= t->shape[i];
  return n;
}

// Element offset of a row, counted over all dimensions but the last.
inline int64_t row_offset(const fx_tensor* t, int64_t row) {
  int64_t offset = 0;
  for (int i = t->rank - 2; i >= 0; i--) {
    offset += row % t->shape[i] * t->strides[i];
    row /= t->shape[i];
  }
  return offset;
}

inline bool is_dense(const fx_tensor* t) {
  int64_t stride = 1;
  for (int i = t->rank - 1; i >= 0; i--) {
    if (t->shape[i] > 1 && t->strides[i] != stride) return false;
    stride *= t->shape[i];
  }
  return true;
}

// Hands out parts of the op's workspace: first all sizes, then one workspace() call, then the addresses.
class Arena {
 public:
  // Offset of `bytes` more, aligned to 64.
  int64_t add(int64_t bytes) {
    int64_t offset = bytes_;
    bytes_ += round_up(bytes, 64);
    return offset;
  }
  void open(fx_ctx* ctx) { base_ = static_cast<char*>(workspace(ctx, bytes_ > 0 ? bytes_ : 64)); }
  template <class T = char>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  int64_t bytes_ = 0;
  char* base_ = nullptr;
};

// The dtype that convolutions are computed in: f32 where the processor has no bf16, or multiplies f32 faster.
inline fx_dtype compute_dtype(fx_dtype dtype) { return onednn_bf16() && detect_bf16() != Bf16::widen ? dtype : fx_dtype(FX_DTYPE_F32); }

// An operand as a library wants it: the tensor itself, or a contiguous copy of the wanted dtype in the workspace.
struct Staged {
  fx_tensor view;             // what the library sees; of a copy, data is valid after place()
  const fx_tensor* original;  // NULL: absent
  int64_t offset;             // of the copy in the arena, -1: none
};

inline Staged stage(Arena& arena, const fx_tensor* t, fx_dtype dtype, bool dense) {
  Staged s{{}, t, -1};
  if (!t) return s;
  s.view = *t;
  if (t->dtype == dtype && (!dense || is_dense(t))) return s;
  s.view.dtype = dtype;
  int64_t n = 1;
  for (int i = t->rank - 1; i >= 0; i--) {
    s.view.strides[i] = n;
    n *= t->shape[i];
  }
  s.offset = arena.add(n * (dtype == FX_DTYPE_F32 ? 4 : 2));
  return s;
}

// Gives the copy its address and fills it.
inline void place(fx_ctx* ctx, const Arena& arena, Staged& s) {
  if (s.offset < 0) return;
  s.view.data = arena.at(s.offset);
  const fx_tensor* tensors[] = {&s.view, s.original};
  Rows<2> rows(tensors);
  dispatch(s.view.dtype, [&](auto t) {
    return dispatch(s.original->dtype, [&](auto f) {
      rows.run(ctx, [&](const Rows<2>::Piece& p) {
        auto* out = data<decltype(t)>(&s.view) + p.at[0];
        auto* in = data<decltype(f)>(s.original) + p.at[1];
        for_lanes(p.n, [&](int64_t i, int64_t lanes) { store_some(out + i, load_some(in + i, lanes), lanes); });
      });
      return fx_status(FX_STATUS_OK);
    });
  });
}

// The same for an activation, slice by slice: rows, counted over all dimensions but the last, in place or copied to the thread's memory.
struct Sliced {
  const fx_tensor* t;
  fx_dtype dtype;
  bool copied;

  Sliced(const fx_tensor* tensor, fx_dtype d) : t(tensor), dtype(d), copied(t->dtype != d || !is_dense(t)) {}
  int64_t bytes(int64_t rows) const { return rows * t->shape[t->rank - 1] * (dtype == FX_DTYPE_F32 ? 4 : 2); }
  int64_t copy_bytes(int64_t rows) const { return copied ? round_up(bytes(rows), 64) : 0; }
  void* at(int64_t first, char* copy) const { return copied ? copy : data<char>(t) + bytes(first); }

  // Rows [first, first + rows) to the copy, and back.
  void read(int64_t first, int64_t rows, char* copy) const {
    walk(first, rows, copy,
         [](auto* dense, auto* in, int64_t i, int64_t lanes) { store_some(dense + i, load_some(in + i, lanes), lanes); });
  }
  void write(int64_t first, int64_t rows, char* copy) const {
    walk(first, rows, copy,
         [](auto* dense, auto* out, int64_t i, int64_t lanes) { store_some(out + i, load_some(dense + i, lanes), lanes); });
  }

 private:
  template <class F>
  void walk(int64_t first, int64_t rows, char* copy, const F& f) const {
    if (!copied) return;
    int64_t C = t->shape[t->rank - 1], together = is_dense(t) ? rows : 1;
    dispatch(dtype, [&](auto d) {
      return dispatch(t->dtype, [&](auto e) {
        auto* dense = reinterpret_cast<decltype(d)*>(copy);
        for (int64_t r = 0; r < rows; r += together, dense += together * C) {
          auto* row = data<decltype(e)>(t) + row_offset(t, first + r);
          for_lanes(together * C, [&](int64_t i, int64_t lanes) { f(dense, row, i, lanes); });
        }
        return fx_status(FX_STATUS_OK);
      });
    });
  }
};

// out [n] += the sum of partial [count,n], in order.
inline void add_partials(fx_ctx* ctx, float* out, const float* partial, int64_t count, int64_t n) {
  constexpr int64_t kBlock = 1024;
  parallel_for(ctx, (n + kBlock - 1) / kBlock, [&](int64_t block) {
    int64_t begin = block * kBlock, length = n - begin < kBlock ? n - begin : kBlock;
    for_lanes(length, [&](int64_t j, int64_t lanes) {
      vf total = load_some(out + begin + j, lanes);
      for (int64_t s = 0; s < count; s++) total += load_some(partial + s * n + begin + j, lanes);
      store_some(out + begin + j, total, lanes);
    });
  });
}

constexpr int64_t kSumRows = 64;  // rows per chunk of a column sum: fixed, so that sums do not depend on the threads

inline int64_t column_sum_bytes(const fx_tensor* t) { return t ? (row_count(t) + kSumRows - 1) / kSumRows * t->shape[t->rank - 1] * 4 : 0; }

// out [C] += sum over the rows of t [..,C]. partial: column_sum_bytes(t).
template <class T>
void add_column_sums(fx_ctx* ctx, float* out, const fx_tensor* t, float* partial) {
  int64_t rows = row_count(t), C = t->shape[t->rank - 1], chunks = (rows + kSumRows - 1) / kSumRows;
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    float* sums = partial + chunk * C;
    memset(sums, 0, size_t(C) * 4);
    int64_t last = chunk * kSumRows + kSumRows < rows ? chunk * kSumRows + kSumRows : rows;
    for (int64_t row = chunk * kSumRows; row < last; row++) {
      const T* in = data<T>(t) + row_offset(t, row);
      for_lanes(C, [&](int64_t i, int64_t lanes) { store_some(sums + i, load_some(sums + i, lanes) + load_some(in + i, lanes), lanes); });
    }
  });
  parallel_for(ctx, (C + kLanes - 1) / kLanes, [&](int64_t block) {
    int64_t i = block * kLanes, lanes = C - i < kLanes ? C - i : kLanes;
    vf total{};
    for (int64_t j = 0; j < chunks; j++) total += load_some(partial + j * C + i, lanes);
    store_some(out + i, load_some(out + i, lanes) + total, lanes);
  });
}

// db [C] += sum over the rows of dy.
inline fx_status add_bias_gradient(fx_ctx* ctx, const fx_tensor* db, const fx_tensor* dy) {
  Arena arena;
  int64_t partial = arena.add(column_sum_bytes(dy));
  arena.open(ctx);
  return dispatch(dy->dtype, [&](auto t) {
    add_column_sums<decltype(t)>(ctx, data<float>(db), dy, arena.at<float>(partial));
    return fx_status(FX_STATUS_OK);
  });
}

}  // namespace fx::FX_TIER
