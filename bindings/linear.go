package bindings

/*
#cgo noescape fx_linear_forward
#cgo nocallback fx_linear_forward
#cgo noescape fx_linear_backward
#cgo nocallback fx_linear_backward
#include "fluxir.h"
*/
import "C"

// LinearForward: y = act(u) with u = x wᵀ + b, or y = residual + gate_b ⊙ u. x [M,I] or [B,L,I]; w [O,I]; b [O] or nil; y as x with O; residual as y and
// gate [B,O], or both nil; pre = u is saved for LinearBackward, nil if not wanted. y may alias residual. See fx_linear_forward.
func (d *Device) LinearForward(y, pre, x, residual, gate, w, b *Tensor, act Act) error {
	return d.check(C.fx_linear_forward(d.ctx, y.c(), pre.c(), x.c(), residual.c(), gate.c(), w.c(), b.c(), C.fx_act(act)))
}

// LinearBackward, with du = dy ⊙ act'(pre), gate_b ⊙ dy or dy: dx = du w, or += where accumulate is set; dgate = Σ_L dy ⊙ pre; dw += duᵀ x and db += Σ du in
// F32. dx, dgate, dw and db may be nil; pre is nil where there is neither act nor gate. See fx_linear_backward.
func (d *Device) LinearBackward(dx, dgate, dw, db, dy, x, gate, w, pre *Tensor, act Act, accumulate bool) error {
	return d.check(C.fx_linear_backward(d.ctx, dx.c(), dgate.c(), dw.c(), db.c(), dy.c(), x.c(), gate.c(), w.c(), pre.c(), C.fx_act(act), flag(accumulate)))
}
