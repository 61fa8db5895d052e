package bindings

// #include "fluxir.h"
import "C"

// Act is an elementwise activation.
type Act int32

// The activations of fluxir.h.
const (
	ActNone     Act = C.FX_ACT_NONE
	ActGELUTanh Act = C.FX_ACT_GELU_TANH // x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))
	ActSiLU     Act = C.FX_ACT_SILU      // x · sigmoid(x)
)
