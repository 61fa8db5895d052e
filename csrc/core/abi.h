// abi.h: the exception fence and the argument checks of the C ABI.
#pragma once
#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>

#include "backend.h"

namespace fx {

// Runs f; whatever it throws becomes a status and a message. Nothing crosses the C boundary.
template <class F>
fx_status fenced(fx_ctx* ctx, const char* op, F&& f) {
  try {
    return f();
  } catch (const std::bad_alloc& e) {  // a backend's own says how much was wanted
    return fail(ctx, FX_STATUS_OUT_OF_MEMORY, "%s: %s", op, strcmp(e.what(), "std::bad_alloc") == 0 ? "out of memory" : e.what());
  } catch (const std::exception& e) {
    return fail(ctx, FX_STATUS_DEVICE, "%s: %s", op, e.what());
  } catch (...) {
    return fail(ctx, FX_STATUS_INTERNAL, "%s: unknown exception", op);
  }
}

enum : unsigned { kF32 = 1u << FX_DTYPE_F32, kBF16 = 1u << FX_DTYPE_BF16, kF16 = 1u << FX_DTYPE_F16, kFloat = kF32 | kBF16 };

// Extent of dimension d, 0 where t is NULL or has fewer: lets checks be written before the first failure is known.
inline int64_t dim(const fx_tensor* t, int d) { return t && d < t->rank ? t->shape[d] : 0; }

// Collects the first violated condition of an op's arguments. Methods after a failure do nothing.
class Check {
 public:
  Check(fx_ctx* ctx, const char* op) : ctx_(ctx), op_(op), ok_(ctx != nullptr) {}

  // t exists, rank in [low, high], dtype in the set, sane shape, last dimension contiguous.
  Check& rank(const char* name, const fx_tensor* t, unsigned dtypes, int low, int high);
  // The same with an exact shape.
  Check& shape(const char* name, const fx_tensor* t, unsigned dtypes, std::initializer_list<int64_t> want);
  // Shape (and dtype, unless a set is given) of another tensor.
  Check& like(const char* name, const fx_tensor* t, const fx_tensor* other, unsigned dtypes = 0);
  // No gaps between rows.
  Check& contiguous(const char* name, const fx_tensor* t);
  // Any other condition, with what was wrong.
  Check& that(bool condition, const char* what);

  // Runs the backend's op when all checks held; nothing to do when the first tensor given to rank() was empty.
  template <class F>
  fx_status run(bool supported, F&& f) {
    if (!ctx_) return FX_STATUS_INVALID;
    if (!ok_) return FX_STATUS_INVALID;
    if (!supported) return fail(ctx_, FX_STATUS_UNSUPPORTED, "%s: not supported by the %s backend", op_, ctx_->backend->name);
    if (empty_) return FX_STATUS_OK;
    return fenced(ctx_, op_, f);
  }

 private:
  bool plain(const char* name, const fx_tensor* t, unsigned dtypes);
  void bad_shape(const char* name, const fx_tensor* t, const int64_t* want, int rank);

  fx_ctx* ctx_;
  const char* op_;
  bool ok_;
  bool empty_ = false;
  bool first_ = true;
};

}  // namespace fx
