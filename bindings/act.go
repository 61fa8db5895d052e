package bindings

/*
#cgo noescape fx_act_forward
#cgo nocallback fx_act_forward
#cgo noescape fx_act_backward
#cgo nocallback fx_act_backward
#include "fluxir.h"
*/
import "C"

// Act is an elementwise activation.
type Act int32

// The activations of fluxir.h.
const (
	ActNone     Act = C.FX_ACT_NONE
	ActGELUTanh Act = C.FX_ACT_GELU_TANH // x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))
	ActSiLU     Act = C.FX_ACT_SILU      // x · sigmoid(x)
)

// ActForward: y = act(x), any shape up to rank 4; y may alias x when no backward follows. See fx_act_forward.
func (d *Device) ActForward(y, x *Tensor, act Act) error {
	return d.check(C.fx_act_forward(d.ctx, y.c(), x.c(), C.fx_act(act)))
}

// ActBackward: dx = dy · act'(x); dx may alias dy. See fx_act_backward.
func (d *Device) ActBackward(dx, dy, x *Tensor, act Act) error {
	return d.check(C.fx_act_backward(d.ctx, dx.c(), dy.c(), x.c(), C.fx_act(act)))
}
