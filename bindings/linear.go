package bindings

/*
#cgo noescape fx_linear_forward
#cgo nocallback fx_linear_forward
#cgo noescape fx_linear_backward
#cgo nocallback fx_linear_backward
#include "fluxir.h"
*/
import "C"

// LinearForward: y = act(x wᵀ + b). x [M,I] or [B,L,I]; w [O,I]; b [O] or nil; y as x with O. See fx_linear_forward.
func (d *Device) LinearForward(y, x, w, b *Tensor, act Act) error {
	return d.check(C.fx_linear_forward(d.ctx, y.c(), x.c(), w.c(), b.c(), C.fx_act(act)))
}

// LinearBackward is the backward of act = ActNone: dx = dy w; dw += dyᵀ x and db += Σ dy in F32. dx, dw and db may be nil. See fx_linear_backward.
func (d *Device) LinearBackward(dx, dw, db, dy, x, w *Tensor) error {
	return d.check(C.fx_linear_backward(d.ctx, dx.c(), dw.c(), db.c(), dy.c(), x.c(), w.c()))
}
