// check.cpp: argument checks. Every message reads `op: name: what: got [..] want [..]`.
#include <cstring>

#include "abi.h"

namespace fx {
namespace {

const char* dtype_name(fx_dtype dtype) {
  switch (dtype) {
    case FX_DTYPE_F32: return "f32";
    case FX_DTYPE_BF16: return "bf16";
    case FX_DTYPE_F16: return "f16";
  }
  return "unknown dtype";
}

struct Shape {
  char text[128];
  Shape(const int64_t* dims, int rank) {
    size_t n = size_t(snprintf(text, sizeof text, "["));
    for (int i = 0; i < rank && n < sizeof text; i++)
      n += size_t(snprintf(text + n, sizeof text - n, i ? ",%lld" : "%lld", (long long)dims[i]));
    if (n < sizeof text) snprintf(text + n, sizeof text - n, "]");
  }
};

}  // namespace

bool Check::plain(const char* name, const fx_tensor* t, unsigned dtypes) {
  if (!ok_) return false;
  ok_ = false;
  if (!t) {
    fail(ctx_, FX_STATUS_INVALID, "%s: %s: got NULL", op_, name);
    return false;
  }
  if (t->rank < 1 || t->rank > FX_MAX_RANK) {
    fail(ctx_, FX_STATUS_INVALID, "%s: %s: rank: got %d want 1..%d", op_, name, t->rank, FX_MAX_RANK);
    return false;
  }
  if (t->dtype < 0 || t->dtype > FX_DTYPE_F16 || !(dtypes >> t->dtype & 1)) {
    fail(ctx_, FX_STATUS_INVALID, "%s: %s: dtype: got %s", op_, name, dtype_name(t->dtype));
    return false;
  }
  bool empty = false;
  for (int i = 0; i < t->rank; i++) {
    if (t->shape[i] < 0 || t->strides[i] < 0) {
      fail(ctx_, FX_STATUS_INVALID, "%s: %s: negative shape or stride: got %s", op_, name, Shape(t->shape, t->rank).text);
      return false;
    }
    empty |= t->shape[i] == 0;
  }
  if (!t->data && !empty) {
    fail(ctx_, FX_STATUS_INVALID, "%s: %s: data is NULL", op_, name);
    return false;
  }
  if (first_) empty_ = empty;
  first_ = false;
  ok_ = true;
  return true;
}

void Check::bad_shape(const char* name, const fx_tensor* t, const int64_t* want, int rank) {
  ok_ = false;
  fail(ctx_, FX_STATUS_INVALID, "%s: %s: shape: got %s want %s", op_, name, Shape(t->shape, t->rank).text, Shape(want, rank).text);
}

Check& Check::rank(const char* name, const fx_tensor* t, unsigned dtypes, int low, int high) {
  if (!plain(name, t, dtypes)) return *this;
  if (t->rank < low || t->rank > high) {
    ok_ = false;
    fail(ctx_, FX_STATUS_INVALID, "%s: %s: rank: got %d want %d..%d", op_, name, t->rank, low, high);
  } else if (t->shape[t->rank - 1] > 1 && t->strides[t->rank - 1] != 1) {
    ok_ = false;
    fail(ctx_, FX_STATUS_INVALID, "%s: %s: last stride: got %lld want 1", op_, name, (long long)t->strides[t->rank - 1]);
  }
  return *this;
}

Check& Check::shape(const char* name, const fx_tensor* t, unsigned dtypes, std::initializer_list<int64_t> want) {
  rank(name, t, dtypes, 1, FX_MAX_RANK);
  if (ok_ && (t->rank != int(want.size()) || memcmp(t->shape, want.begin(), want.size() * sizeof(int64_t)) != 0))
    bad_shape(name, t, want.begin(), int(want.size()));
  return *this;
}

Check& Check::like(const char* name, const fx_tensor* t, const fx_tensor* other, unsigned dtypes) {
  if (!ok_) return *this;
  rank(name, t, dtypes ? dtypes : 1u << other->dtype, 1, FX_MAX_RANK);
  if (ok_ && (t->rank != other->rank || memcmp(t->shape, other->shape, size_t(t->rank) * sizeof(int64_t)) != 0))
    bad_shape(name, t, other->shape, other->rank);
  return *this;
}

Check& Check::contiguous(const char* name, const fx_tensor* t) {
  if (!ok_ || !t) return *this;
  int64_t stride = 1;
  for (int i = t->rank - 1; i >= 0; i--) {
    if (t->shape[i] > 1 && t->strides[i] != stride) {
      ok_ = false;
      fail(ctx_, FX_STATUS_INVALID, "%s: %s: must be contiguous: got strides %s for shape %s", op_, name, Shape(t->strides, t->rank).text,
           Shape(t->shape, t->rank).text);
      return *this;
    }
    stride *= t->shape[i];
  }
  return *this;
}

Check& Check::that(bool condition, const char* what) {
  if (ok_ && !condition) {
    ok_ = false;
    fail(ctx_, FX_STATUS_INVALID, "%s: %s", op_, what);
  }
  return *this;
}

}  // namespace fx
