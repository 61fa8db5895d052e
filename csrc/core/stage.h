// stage.h: tensors as rows of contiguous elements: column sums in a fixed order, and operands staged in another layout or dtype for a
// library.
#pragma once
#include "onednn.h"
#include "op.h"

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

// The dtype oneDNN computes in: f32 where the processor has no bf16.
inline fx_dtype compute_dtype(fx_dtype dtype) { return onednn_bf16() ? dtype : fx_dtype(FX_DTYPE_F32); }

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

template <class To, class From>
void convert_rows(fx_ctx* ctx, const fx_tensor* to, const fx_tensor* from) {
  int64_t C = to->shape[to->rank - 1];
  parallel_for(ctx, row_count(to), [&](int64_t row) {
    To* out = data<To>(to) + row_offset(to, row);
    const From* in = data<From>(from) + row_offset(from, row);
    for_lanes(C, [&](int64_t i, int64_t lanes) { store_some(out + i, load_some(in + i, lanes), lanes); });
  });
}

inline void copy_rows(fx_ctx* ctx, const fx_tensor* to, const fx_tensor* from) {
  dispatch(to->dtype, [&](auto t) {
    return dispatch(from->dtype, [&](auto f) {
      convert_rows<decltype(t), decltype(f)>(ctx, to, from);
      return fx_status(FX_STATUS_OK);
    });
  });
}

// Gives the copy its address; an input is filled.
inline void place(fx_ctx* ctx, const Arena& arena, Staged& s, bool input) {
  if (s.offset < 0) return;
  s.view.data = arena.at(s.offset);
  if (input) copy_rows(ctx, &s.view, s.original);
}

// Writes an output's copy back.
inline void unstage(fx_ctx* ctx, const Staged& s) {
  if (s.offset >= 0) copy_rows(ctx, s.original, &s.view);
}

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
