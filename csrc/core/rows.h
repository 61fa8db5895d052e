// rows.h: walks tensors of one shape together, in contiguous pieces. Dimensions without gaps in any of the tensors are merged, so dense
// tensors are one long row; long rows are cut and short ones grouped into jobs, whose number depends on shapes and strides alone: what a
// reduction needs.
#pragma once
#include "op.h"

namespace fx::FX_TIER {

constexpr int64_t kJob = 8192;  // elements of a job: a multiple of kLanes, and small enough for L1 and L2

template <int N>
class Rows {
 public:
  struct Piece {
    int64_t job;    // in [0, jobs())
    int64_t item;   // index of dimension 0, where the batch is kept apart
    int64_t n;      // contiguous elements
    int64_t at[N];  // offset of the first element in each tensor
  };

  // tensors: of one shape, last dimension contiguous, NULL where absent but not the first. batch: pieces do not cross items of dimension 0.
  explicit Rows(const fx_tensor* const (&tensors)[N], bool batch = false) {
    const fx_tensor* lead = tensors[0];
    for (int d = 0; d < lead->rank; d++) {
      bool apart = batch && d == 0;
      if (lead->shape[d] == 1 && !apart) continue;
      if (rank_ > (batch ? 1 : 0) && gapless(tensors, d)) shape_[rank_ - 1] *= lead->shape[d];
      else shape_[rank_++] = lead->shape[d];
      for (int k = 0; k < N; k++) strides_[k][rank_ - 1] = tensors[k] ? tensors[k]->strides[d] : 0;
    }
    if (rank_ == (batch ? 1 : 0) || !contiguous(tensors)) {  // a last dimension of size 1 was dropped but is the row
      for (int k = 0; k < N; k++) strides_[k][rank_] = 1;
      shape_[rank_++] = 1;
    }
    for (int d = 0; d < rank_ - 1; d++) rows_ *= shape_[d];
    int64_t length = shape_[rank_ - 1];
    pieces_ = (length + kJob - 1) / kJob;
    group_ = pieces_ > 1 ? 1 : kJob / length;
  }

  int64_t jobs() const { return (rows_ + group_ - 1) / group_ * pieces_; }

  // Calls f(piece) for all pieces; those of one job in order, on one thread.
  template <class F>
  void run(fx_ctx* ctx, const F& f) const {
    parallel_for(ctx, jobs(), [&](int64_t job) {
      int64_t first = job / pieces_ * group_, last = first + group_ < rows_ ? first + group_ : rows_;
      for (int64_t row = first; row < last; row++) f(piece(job, row));
    });
  }

 private:
  // Does dimension d continue the last collected one in every tensor?
  bool gapless(const fx_tensor* const (&tensors)[N], int d) const {
    for (int k = 0; k < N; k++)
      if (tensors[k] && strides_[k][rank_ - 1] != tensors[k]->shape[d] * tensors[k]->strides[d]) return false;
    return true;
  }

  bool contiguous(const fx_tensor* const (&tensors)[N]) const {
    for (int k = 0; k < N; k++)
      if (tensors[k] && strides_[k][rank_ - 1] != 1) return false;
    return true;
  }

  Piece piece(int64_t job, int64_t row) const {
    int64_t start = job % pieces_ * kJob, left = shape_[rank_ - 1] - start;
    Piece p{job, 0, left < kJob ? left : kJob, {}};
    for (int k = 0; k < N; k++) p.at[k] = start;
    for (int d = rank_ - 2; d >= 0; d--) {
      p.item = row % shape_[d];
      row /= shape_[d];
      for (int k = 0; k < N; k++) p.at[k] += p.item * strides_[k][d];
    }
    return p;
  }

  int rank_ = 0;
  int64_t shape_[FX_MAX_RANK + 1]{}, strides_[N][FX_MAX_RANK + 1]{};
  int64_t rows_ = 1, pieces_, group_;
};

// One f64 sum per job, kept as lanes, in the ctx's workspace; the jobs are added in order.
class JobSums {
 public:
  JobSums(fx_ctx* ctx, int64_t jobs) : lanes_(static_cast<double*>(workspace(ctx, jobs * int64_t(sizeof(vd))))), jobs_(jobs) {
    memset(lanes_, 0, size_t(jobs) * sizeof(vd));
  }

  void add(int64_t job, vd v) { put(job, get(job) + v); }

  double total() const {
    vd t{};
    for (int64_t job = 0; job < jobs_; job++) t += get(job);
    return sum(t);
  }

 private:
  vd get(int64_t job) const {
    vd v;
    memcpy(&v, lanes_ + job * kLanes, sizeof v);
    return v;
  }
  void put(int64_t job, vd v) { memcpy(lanes_ + job * kLanes, &v, sizeof v); }

  double* lanes_;
  int64_t jobs_;
};

}  // namespace fx::FX_TIER
