// group.cuh: rows that a group of threads shares: each thread holds kHold vectors of the row in registers, so that a row is read from
// memory once however often it is walked.
#pragma once
#include <type_traits>

#include "device.cuh"

namespace fx::cuda {

// How the rows of C elements are shared out. hold = 0: rows that are not aligned, or too long for registers; they are read again each time.
struct GroupPlan {
  int size;   // threads of a group: a power of two up to 32, or whole warps
  int hold;   // vectors per thread: 1, 4 or 0
  int block;  // threads
  int width;  // elements of a vector
  int64_t shared() const { return block / 32 * int64_t(sizeof(float)) * 2; }
  int64_t per_block() const { return block / size; }

  GroupPlan(int64_t C, int vector, bool wide) {
    width = wide ? vector : 1;
    int64_t n = C / width;
    size = 32;
    hold = 4;
    if (!wide || n > 4 * kThreads) {
      hold = 0;
      while (size < kThreads && size < n) size += 32;
    } else if (n <= 32) {
      hold = 1;
      while (size / 2 >= n && size > 1) size /= 2;
    } else if (n > 128) {
      size = int(round_up(ceil_div(n, 4), 32));
    }
    block = size <= 32 ? 128 : size;
  }
};

// A row as one thread sees it.
template <class T, int V, int kHold>
struct Row {
  const T* p;
  int vectors, lane, step;
  Pack<T, V> held[kHold > 0 ? kHold : 1];

  // live: there is such a row; else it is taken for empty.
  __device__ __forceinline__ Row(const T* row, int64_t C, const Group& group, bool live)
      : p(row), vectors(live ? int(C / V) : 0), lane(group.lane), step(group.size) {
#pragma unroll
    for (int k = 0; k < kHold; k++)
      if (lane + k * step < vectors) held[k] = reinterpret_cast<const Pack<T, V>*>(p)[lane + k * step];
  }

  // Element i of vector k of this thread, at index `at` in the row.
  __device__ __forceinline__ void get(float (&out)[V], int k, int at) const {
    Pack<T, V> pack = kHold > 0 ? held[k] : reinterpret_cast<const Pack<T, V>*>(p)[at];
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = to_float(pack.v[i]);
  }
};

// Calls f(k, at) for the thread's vectors of a row: number and index of the vector. k is a constant after unrolling.
template <int kHold, class F>
__device__ __forceinline__ void for_vectors(int vectors, const Group& group, const F& f) {
  if (kHold == 0) {
    for (int at = group.lane; at < vectors; at += group.size) f(0, at);
  } else {
#pragma unroll
    for (int k = 0; k < (kHold > 0 ? kHold : 1); k++)
      if (group.lane + k * group.size < vectors) f(k, group.lane + k * group.size);
  }
}

// Calls f with the vector's width and the number of vectors to hold as constants.
template <int V, class F>
void with_plan(const GroupPlan& plan, const F& f) {
  using std::integral_constant;
  if (plan.hold == 1) f(integral_constant<int, V>{}, integral_constant<int, 1>{});
  else if (plan.hold == 4) f(integral_constant<int, V>{}, integral_constant<int, 4>{});
  else if (plan.width == V) f(integral_constant<int, V>{}, integral_constant<int, 0>{});
  else f(integral_constant<int, 1>{}, integral_constant<int, 0>{});
}

}  // namespace fx::cuda
