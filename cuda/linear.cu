// linear.cu: y = act(x w^T + b), dx = dy w, dw += dy^T x on cuBLASLt, and db += sum dy. cuBLASLt is column-major: a row-major [rows, n] is
// its n x rows. The plan of a product (descriptors and algorithm) is made once per shape. Operands whose rows are not aligned to 16 bytes,
// or overlap, are copied: models have none.
#include <cublasLt.h>

#include <array>
#include <map>

#include "core/columns.cuh"
#include "core/rows.cuh"

namespace fx::cuda {
namespace {

constexpr int64_t kLibraryBytes = 32 << 20;  // workspace of cuBLASLt

void need(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(status));
}

// d [m,n] = op(a) op(b) + beta d, column-major, for every matrix of a batch; then the epilogue.
struct Product {
  int64_t m, n, k, batch;
  int64_t a_ld, b_ld, d_ld, a_step, b_step, d_step;
  int64_t transpose_a, transpose_b, dtype, d_dtype, epilogue;
  int64_t aux_ld = 0, aux_step = 0;  // of what the epilogue stores besides

  using Key = std::array<int64_t, 17>;
  Key key() const {
    return {m, n, k, batch, a_ld, b_ld, d_ld, a_step, b_step, d_step, transpose_a, transpose_b, dtype, d_dtype, epilogue, aux_ld, aux_step};
  }
};

struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algorithm;
};

cudaDataType_t cuda_type(int64_t dtype) { return dtype == FX_DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF; }

template <class T>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  need(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), "descriptor");
}

cublasLtMatrixLayout_t matrix(int64_t dtype, int64_t rows, int64_t columns, int64_t ld, int64_t batch, int64_t step) {
  cublasLtMatrixLayout_t layout;
  int32_t count = int32_t(batch);
  need(cublasLtMatrixLayoutCreate(&layout, cuda_type(dtype), uint64_t(rows), uint64_t(columns), ld), "layout");
  need(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "layout");
  need(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step), "layout");
  return layout;
}

}  // namespace

struct LinearState {
  cublasLtHandle_t handle = nullptr;
  std::map<Product::Key, Plan> plans;
};

void close_linear(LinearState* state) {
  for (auto& [key, plan] : state->plans) {
    cublasLtMatmulDescDestroy(plan.operation);
    cublasLtMatrixLayoutDestroy(plan.a);
    cublasLtMatrixLayoutDestroy(plan.b);
    cublasLtMatrixLayoutDestroy(plan.d);
  }
  cublasLtDestroy(state->handle);
  delete state;
}

int64_t linear_library_version() { return int64_t(cublasLtGetVersion()); }

namespace {

LinearState* library(fx_ctx* ctx) {
  LinearState*& state = linear_state(ctx);
  if (!state) {
    cublasLtHandle_t handle;
    need(cublasLtCreate(&handle), "create");
    state = new LinearState;
    state->handle = handle;
  }
  return state;
}

// Full f32 products, sums in f32; of the ways to split a sum only those that add in a fixed order.
Plan make_plan(cublasLtHandle_t handle, const Product& p) {
  Plan plan;
  need(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, cublasLtEpilogue_t(p.epilogue));
  if (p.aux_ld) {
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.aux_ld);
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, p.aux_step);
  }
  plan.a = matrix(p.dtype, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.a_ld, p.batch, p.a_step);
  plan.b = matrix(p.dtype, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.b_ld, p.batch, p.b_step);
  plan.d = matrix(p.d_dtype, p.m, p.n, p.d_ld, p.batch, p.d_step);
  cublasLtMatmulPreference_t preference;
  need(cublasLtMatmulPreferenceCreate(&preference), "preference");
  uint64_t bytes = kLibraryBytes;
  uint32_t alignment = 16, schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes);
  for (auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                     CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    cublasLtMatmulPreferenceSetAttribute(preference, which, &alignment, sizeof alignment);
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, plan.operation, plan.a, plan.b, plan.d, plan.d, preference, 1, &result, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  need(status, "no algorithm");
  if (!found) throw std::runtime_error("cuBLASLt: no algorithm for the product");
  plan.algorithm = result.algo;
  return plan;
}

// bias and aux: NULL where the epilogue has none.
void multiply(fx_ctx* ctx, const Product& p, const void* a, const void* b, void* d, float beta, void* scratch, const void* bias = nullptr,
              void* aux = nullptr) {
  LinearState* state = library(ctx);
  auto found = state->plans.find(p.key());
  if (found == state->plans.end()) found = state->plans.emplace(p.key(), make_plan(state->handle, p)).first;
  Plan& plan = found->second;
  float alpha = 1;
  if (bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  if (aux) set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
  need(cublasLtMatmul(state->handle, plan.operation, &alpha, a, plan.a, b, plan.b, &beta, d, plan.d, d, plan.d, &plan.algorithm, scratch,
                      kLibraryBytes, stream(ctx)),
       "matmul");
}

// ---- operands ----

// [M,I] or [B,L,I] as batch matrices of rows; one matrix where the batch can be walked with the row stride.
struct RowBatch {
  int64_t batch, rows, step, ld;

  explicit RowBatch(const fx_tensor& t) {
    bool one = t.rank == 2;
    batch = one ? 1 : t.shape[0];
    rows = t.shape[t.rank - 2];
    step = one ? 0 : t.strides[0];
    ld = t.strides[t.rank - 2];
    if (rows == 1 && batch > 1) {  // one row each: the batch is the rows
      rows = batch, batch = 1;
      ld = step;
    }
    if (rows == 1 && ld < t.shape[t.rank - 1]) ld = round_up(t.shape[t.rank - 1], 8);  // the stride of a single row is free
  }
  bool mergeable() const { return batch == 1 || step == rows * ld; }
  void merge() { rows *= batch, batch = 1, step = 0; }
};

void merge(RowBatch& a, RowBatch& b) {
  if (a.mergeable() && b.mergeable()) a.merge(), b.merge();
}

int64_t size_of(const fx_tensor* t) { return t->dtype == FX_DTYPE_F32 ? 4 : 2; }

// Does cuBLASLt take t as it lies? Rows must not overlap, and start at multiples of 16 bytes.
bool direct(const fx_tensor* t) {
  if (reinterpret_cast<uintptr_t>(t->data) % 16) return false;
  for (int d = 0; d < t->rank - 1; d++)
    if (t->shape[d] > 1 && (t->strides[d] * size_of(t) % 16 || t->strides[d] < t->shape[t->rank - 1])) return false;
  return true;
}

// A copy's rows, and the distance between them.
int64_t rows_of(const fx_tensor* t) { return elements(t) / t->shape[t->rank - 1]; }
int64_t pitch(const fx_tensor* t) { return round_up(t->shape[t->rank - 1], 8); }

// Parts of the workspace, in order.
class Arena {
 public:
  // t itself, or a place for a copy of it with aligned rows.
  int64_t place(const fx_tensor* t) { return direct(t) ? -1 : copy_of(t); }
  int64_t copy_of(const fx_tensor* t) { return add(rows_of(t) * pitch(t) * size_of(t)); }
  int64_t add(int64_t bytes) {
    int64_t at = bytes_;
    bytes_ += round_up(bytes, 256);
    return at;
  }
  void open(fx_ctx* ctx) { base_ = static_cast<char*>(workspace(ctx, bytes_)); }
  void* at(int64_t offset) const { return base_ + offset; }
  fx_tensor view(const fx_tensor* t, int64_t offset) const {
    fx_tensor v = *t;
    if (offset < 0) return v;
    v.data = at(offset);
    int64_t stride = pitch(t);
    v.strides[t->rank - 1] = 1;
    for (int d = t->rank - 2; d >= 0; d--) v.strides[d] = stride, stride *= t->shape[d];
    return v;
  }

 private:
  int64_t bytes_ = 0;
  char* base_ = nullptr;
};

template <class T>
struct Copy {
  static constexpr int kWidth = vector_width<T>;
  T* y;
  const T* x;
  bool accumulate;

  template <int V>
  __device__ void run(const At<2>& at) const {
    float v[V], old[V];
    load(v, x + at.at[1]);
    if (accumulate) {
      load(old, y + at.at[0]);
#pragma unroll
      for (int i = 0; i < V; i++) v[i] += old[i];
    }
    store(y + at.at[0], v);
  }
};

void copy(fx_ctx* ctx, const fx_tensor& y, const fx_tensor& x, bool accumulate = false) {
  if (y.data == x.data) return;
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows(ctx, RowsPlan<2>({&y, &x}), Copy<T>{data<T>(&y), data<T>(&x), accumulate});
  });
}

// ---- activations ----

constexpr float kTwoRoot = 1.5957691216f;  // 2 √(2/π)
constexpr float kCubic = 0.044715f;

// x · sigmoid(w): see act.cu.
__device__ __forceinline__ float activate(float x, fx_act act) {
  return act == FX_ACT_NONE ? x : x * sigmoid(act == FX_ACT_SILU ? x : x * (kTwoRoot + kTwoRoot * kCubic * x * x));
}
__device__ __forceinline__ float activation_slope(float x, fx_act act) {
  float s, rest, square = x * x;
  sigmoid_pair(act == FX_ACT_SILU ? x : x * (kTwoRoot + kTwoRoot * kCubic * square), s, rest);
  return s + x * s * rest * (act == FX_ACT_SILU ? 1 : kTwoRoot + 3 * kTwoRoot * kCubic * square);
}

// t [M,I] or [B,L,I] as [B,L,I].
fx_tensor in_items(const fx_tensor* t) {
  fx_tensor v = *t;
  if (t->rank == 3) return v;
  v.rank = 3;
  v.shape[0] = 1, v.strides[0] = 0;
  for (int d = 0; d < 2; d++) v.shape[d + 1] = t->shape[d], v.strides[d + 1] = t->strides[d];
  return v;
}

// A vector per item [B,O], or one for all [O], seen as [B,L,O] beside t.
fx_tensor over_rows(const fx_tensor* vector, const fx_tensor& t) {
  fx_tensor v = t;
  v.data = vector->data, v.dtype = vector->dtype;
  v.strides[0] = vector->rank == 2 ? vector->strides[0] : 0, v.strides[1] = 0, v.strides[2] = 1;
  return v;
}

// What follows a product u0 F32, in rows of pitch(y), that cuBLASLt has no epilogue for: u = u0 + b; pre = u; y = act(u) or residual + gate
// ⊙ u.
template <class T>
struct Follow {
  static constexpr int kWidth = 4;
  T *y, *pre;
  const float* u0;
  const T *b, *residual, *gate;
  fx_act act;

  template <int V>
  __device__ void run(const At<6>& at) const {
    float u[V], v[V], g[V];
    load(u, u0 + at.at[2]);
    if (b) {
      load(v, b + at.at[3]);
#pragma unroll
      for (int i = 0; i < V; i++) u[i] += v[i];
    }
    if (pre) store(pre + at.at[1], u);
    if (gate) {
      load(v, residual + at.at[4]), load(g, gate + at.at[5]);
#pragma unroll
      for (int i = 0; i < V; i++) u[i] = v[i] + g[i] * u[i];
    } else {
#pragma unroll
      for (int i = 0; i < V; i++) u[i] = activate(u[i], act);
    }
    store(y + at.at[0], u);
  }
};

fx_status follow(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* pre, float* u0, const fx_tensor* residual, const fx_tensor* gate,
                 const fx_tensor* b, fx_act act) {
  fx_tensor ys = in_items(y), ps{}, us = ys, bs{}, rs{}, gs{};
  us.data = u0, us.dtype = FX_DTYPE_F32;
  us.strides[2] = 1, us.strides[1] = pitch(y), us.strides[0] = ys.shape[1] * pitch(y);
  if (pre) ps = in_items(pre);
  if (b) bs = over_rows(b, ys);
  if (gate) rs = in_items(residual), gs = over_rows(gate, ys);
  RowsPlan<6> plan({&ys, pre ? &ps : nullptr, &us, b ? &bs : nullptr, gate ? &rs : nullptr, gate ? &gs : nullptr});
  return dispatch(y->dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows(ctx, plan, Follow<T>{data<T>(y), data<T>(pre), u0, data<T>(b), data<T>(residual), data<T>(gate), act});
  });
}

// ---- the three products ----

// The product and nothing else, in f32, and follow().
fx_status forward_followed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* pre, const fx_tensor* x, const fx_tensor* residual,
                           const fx_tensor* gate, const fx_tensor* w, const fx_tensor* b, fx_act act) {
  Arena arena;
  int64_t O = w->shape[0], xa = arena.place(x), wa = arena.place(w), ua = arena.add(rows_of(y) * pitch(y) * 4),
          scratch = arena.add(kLibraryBytes);
  arena.open(ctx);
  fx_tensor xv = arena.view(x, xa), wv = arena.view(w, wa);
  copy(ctx, xv, *x), copy(ctx, wv, *w);
  RowBatch in(xv), weights(wv);
  if (in.mergeable()) in.merge();
  Product p{O,     in.rows,  w->shape[1], in.batch,     weights.ld,
            in.ld, pitch(y), 0,           in.step,      in.rows * pitch(y),
            1,     0,        x->dtype,    FX_DTYPE_F32, CUBLASLT_EPILOGUE_DEFAULT};
  float* u0 = static_cast<float*>(arena.at(ua));
  multiply(ctx, p, wv.data, xv.data, u0, 0, arena.at(scratch));
  return follow(ctx, y, pre, u0, residual, gate, b, act);
}

// Does the product need follow()? cuBLASLt has epilogues for the bias and for GELU, which also store u.
bool followed(const fx_tensor* y, const fx_tensor* pre, const fx_tensor* gate, fx_act act) {
  return gate || act == FX_ACT_SILU || (pre && (act == FX_ACT_NONE || !direct(pre) || y->dtype == FX_DTYPE_F32));
}

fx_status linear_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* pre, const fx_tensor* x, const fx_tensor* residual,
                         const fx_tensor* gate, const fx_tensor* w, const fx_tensor* b, fx_act act) {
  int64_t O = w->shape[0], I = w->shape[1];
  if (O == 0) return FX_STATUS_OK;
  if (followed(y, pre, gate, act)) return forward_followed(ctx, y, pre, x, residual, gate, w, b, act);
  Arena arena;
  int64_t xa = arena.place(x), wa = arena.place(w), ya = arena.place(y), ba = -1;
  if (b && !direct(b)) ba = arena.add(O * size_of(b));
  int64_t scratch = arena.add(kLibraryBytes);
  arena.open(ctx);
  fx_tensor xv = arena.view(x, xa), wv = arena.view(w, wa), yv = arena.view(y, ya), bv{};
  copy(ctx, xv, *x), copy(ctx, wv, *w);
  if (b) bv = arena.view(b, ba), copy(ctx, bv, *b);
  RowBatch in(xv), out(yv), weights(wv), saved(pre ? *pre : yv);
  if (in.mergeable() && out.mergeable() && saved.mergeable()) in.merge(), out.merge(), saved.merge();
  int64_t epilogue = b ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (act == FX_ACT_GELU_TANH) {
    if (pre) epilogue = b ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    else epilogue = b ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  }
  Product p{O, in.rows, I, in.batch, weights.ld, in.ld, out.ld, 0, in.step, out.step, 1, 0, x->dtype, y->dtype, epilogue};
  if (pre) p.aux_ld = saved.ld, p.aux_step = saved.step;
  multiply(ctx, p, wv.data, xv.data, yv.data, 0, arena.at(scratch), bv.data, pre ? pre->data : nullptr);
  copy(ctx, *y, yv);
  return FX_STATUS_OK;
}

// dx = du w, or +=.
void input_gradient(fx_ctx* ctx, const fx_tensor& dx, const fx_tensor& du, const fx_tensor& w, bool accumulate, void* scratch) {
  RowBatch in(du), out(dx), weights(w);
  merge(in, out);
  Product p{w.shape[1], in.rows, w.shape[0], in.batch, weights.ld,
            in.ld,      out.ld,  0,          in.step,  out.step,
            0,          0,       du.dtype,   dx.dtype, CUBLASLT_EPILOGUE_DEFAULT};
  multiply(ctx, p, w.data, du.data, dx.data, accumulate, scratch);
}

// dw = du^T x, or +=; the matrices of a batch one after another.
void weight_gradient(fx_ctx* ctx, const fx_tensor& dw, const fx_tensor& du, const fx_tensor& x, bool accumulate, void* scratch) {
  RowBatch left(du), right(x), out(dw);
  merge(left, right);
  Product p{
      dw.shape[1], dw.shape[0], left.rows, 1, right.ld, left.ld, out.ld, 0, 0, 0, 0, 1, du.dtype, FX_DTYPE_F32, CUBLASLT_EPILOGUE_DEFAULT};
  for (int64_t i = 0; i < left.batch; i++)
    multiply(ctx, p, static_cast<char*>(x.data) + i * right.step * size_of(&x), static_cast<char*>(du.data) + i * left.step * size_of(&du),
             dw.data, i > 0 || accumulate, scratch);
}

// du = dy, dy ⊙ act'(pre) or gate ⊙ dy, stored where du is wanted; sums of du and of dy ⊙ pre.
template <class T>
struct Gradient {
  T* du;
  const T *dy, *pre, *gate;
  int64_t du_strides[2], dy_strides[2], pre_strides[2], gate_stride;
  fx_act act;

  template <int V>
  __device__ Floats<V> start(int64_t b, int64_t, int64_t c) const {
    Floats<V> g;
    if (gate) load(g.v, gate + b * gate_stride + c);
    return g;
  }

  template <int V>
  __device__ void add(float (&sums)[2][V], const Floats<V>& scale, int64_t b, int64_t l, int64_t c) const {
    float d[V], v[V];
    load(d, dy + b * dy_strides[0] + l * dy_strides[1] + c);
    if (pre) {
      load(v, pre + b * pre_strides[0] + l * pre_strides[1] + c);
#pragma unroll
      for (int i = 0; i < V; i++) {
        sums[1][i] += d[i] * v[i];
        if (act != FX_ACT_NONE) d[i] *= activation_slope(v[i], act);
      }
    }
    if (gate) {
#pragma unroll
      for (int i = 0; i < V; i++) d[i] *= scale.v[i];
    }
#pragma unroll
    for (int i = 0; i < V; i++) sums[0][i] += d[i];
    if (du) store(du + b * du_strides[0] + l * du_strides[1] + c, d);
  }
};

// One pass over dy for du (NULL: not stored), db and dgate.
void gradient_pass(fx_ctx* ctx, const fx_tensor* du, float* partial, const fx_tensor* dgate, const fx_tensor* db, const fx_tensor* dy,
                   const fx_tensor* gate, const fx_tensor* pre, fx_act act) {
  fx_tensor ds = in_items(dy), ps = pre ? in_items(pre) : fx_tensor{}, us = du ? in_items(du) : fx_tensor{};
  int64_t B = ds.shape[0], L = ds.shape[1], O = ds.shape[2], chunks = chunks_of(L);
  dispatch(dy->dtype, [&](auto t) {
    using T = decltype(t);
    Gradient<T> f{data<T>(du),
                  data<T>(dy),
                  data<T>(pre),
                  data<T>(gate),
                  {us.strides[0], us.strides[1]},
                  {ds.strides[0], ds.strides[1]},
                  {ps.strides[0], ps.strides[1]},
                  gate ? gate->strides[0] : 0,
                  act};
    bool wide = vectors(dy, 16) && vectors(du, 16) && vectors(pre, 16) && vectors(gate, 16);
    if (wide) for_columns<vector_width<T>, 2>(ctx, partial, B, L, O, f);
    else for_columns<1, 2>(ctx, partial, B, L, O, f);
    if (db) finish_columns(ctx, data<float>(db), 0, partial, 1, B * chunks, O, 2 * O, 1, true);
    if (dgate) finish_columns(ctx, data<T>(dgate), dgate->strides[0], partial + O, B, chunks, O, 2 * O);
    return FX_STATUS_OK;
  });
}

fx_status linear_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dgate, const fx_tensor* dw, const fx_tensor* db,
                          const fx_tensor* dy, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* w, const fx_tensor* pre,
                          fx_act act, int32_t accumulate) {
  if (w->shape[0] == 0) return FX_STATUS_OK;
  if (w->shape[1] == 0) dx = dw = nullptr;
  bool plain = act == FX_ACT_NONE && !gate, products = dx || dw;
  Arena arena;
  fx_tensor items = in_items(dy);
  int64_t partial = arena.add(items.shape[0] * chunks_of(items.shape[1]) * 2 * w->shape[0] * 4);
  int64_t dua = !products ? -1 : plain ? arena.place(dy) : arena.copy_of(dy);
  int64_t wa = dx ? arena.place(w) : -1, dxa = dx ? arena.place(dx) : -1, xa = dw ? arena.place(x) : -1, dwa = dw ? arena.place(dw) : -1;
  int64_t scratch = products ? arena.add(kLibraryBytes) : 0;
  arena.open(ctx);
  fx_tensor du = arena.view(dy, dua);
  if (products && plain) copy(ctx, du, *dy);
  bool stored = products && !plain;
  if (db || dgate || stored)
    gradient_pass(ctx, stored ? &du : nullptr, static_cast<float*>(arena.at(partial)), dgate, db, dy, gate, pre, act);
  if (dx) {
    fx_tensor wv = arena.view(w, wa), dxv = arena.view(dx, dxa);
    copy(ctx, wv, *w);
    if (accumulate) copy(ctx, dxv, *dx);
    input_gradient(ctx, dxv, du, wv, accumulate != 0, arena.at(scratch));
    copy(ctx, *dx, dxv);
  }
  if (dw) {
    fx_tensor xv = arena.view(x, xa), dwv = arena.view(dw, dwa);
    copy(ctx, xv, *x);
    weight_gradient(ctx, dwv, du, xv, dwa < 0, arena.at(scratch));
    copy(ctx, *dw, dwv, true);
  }
  return FX_STATUS_OK;
}

}  // namespace

void add_linear(fx_ops* ops) {
  ops->linear_forward = linear_forward;
  ops->linear_backward = linear_backward;
}

}  // namespace fx::cuda
