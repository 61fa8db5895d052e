package bindings

/*
#cgo noescape fx_gate_forward
#cgo nocallback fx_gate_forward
#cgo noescape fx_gate_backward
#cgo nocallback fx_gate_backward
#include "fluxir.h"
*/
import "C"

// GateForward: y = x + alpha · gate_b ⊙ r. x, r, y [B,L,C]; gate [B,C] of x's dtype or F32; y may alias x. See fx_gate_forward.
func (d *Device) GateForward(y, x, gate, r *Tensor, alpha float32) error {
	return d.check(C.fx_gate_forward(d.ctx, y.c(), x.c(), gate.c(), r.c(), C.float(alpha)))
}

// GateBackward: dr = alpha · gate ⊙ dy, or += where accumulate is set, dgate = alpha · Σ_L dy ⊙ r; either may be nil. dx is dy itself. See fx_gate_backward.
func (d *Device) GateBackward(dr, dgate, dy, gate, r *Tensor, alpha float32, accumulate bool) error {
	return d.check(C.fx_gate_backward(d.ctx, dr.c(), dgate.c(), dy.c(), gate.c(), r.c(), C.float(alpha), flag(accumulate)))
}
