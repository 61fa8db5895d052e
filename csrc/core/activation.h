// activation.h: GELU (tanh form) and SiLU on vectors. Both are x · sigmoid(w): SiLU with w = x, and, as (1 + tanh u) / 2 = sigmoid(2u),
// GELU with w = 2 √(2/π) (x + 0.044715 x³).
#pragma once
#include "op.h"

namespace fx::FX_TIER {

constexpr float kTwoRoot = 1.5957691216f;  // 2 √(2/π)
constexpr float kCubic = 0.044715f;

// act(x) and act'(x) of an x · sigmoid(A::argument(x)); A::slope is the argument's derivative.
template <class A>
struct Gated {
  static FX_INLINE vf value(vf x) { return x * sigmoid(A::argument(x)); }
  static FX_INLINE vf derivative(vf x) {
    vf s, rest;
    sigmoid_pair(A::argument(x), s, rest);
    return s + x * s * rest * A::slope(x);
  }
};

struct Gelu : Gated<Gelu> {
  static FX_INLINE vf argument(vf x) { return x * (kTwoRoot + kTwoRoot * kCubic * x * x); }
  static FX_INLINE vf slope(vf x) { return kTwoRoot + 3 * kTwoRoot * kCubic * x * x; }
};

struct Silu : Gated<Silu> {
  static FX_INLINE vf argument(vf x) { return x; }
  static FX_INLINE vf slope(vf) { return splat(1); }
};

}  // namespace fx::FX_TIER
