package bindings

/*
#cgo noescape fx_adaln_forward
#cgo nocallback fx_adaln_forward
#cgo noescape fx_adaln_backward
#cgo nocallback fx_adaln_backward
#include "fluxir.h"
*/
import "C"

// AdaLNForward: y = layernorm(x) · (1 + scale_b) + shift_b. x, y [B,L,C]; shift, scale [B,C]; mean, rstd [B,L] F32, saved for backward, nil
// together if not wanted. See fx_adaln_forward.
func (d *Device) AdaLNForward(y, mean, rstd, x, shift, scale *Tensor, eps float32) error {
	return d.check(C.fx_adaln_forward(d.ctx, y.c(), mean.c(), rstd.c(), x.c(), shift.c(), scale.c(), C.float(eps)))
}

// AdaLNBackward: dx, overwritten or, where accumulate is set, added to; dshift and dscale, overwritten; dshift and dscale [B,C] may be nil together. See fx_adaln_backward.
func (d *Device) AdaLNBackward(dx, dshift, dscale, dy, x, mean, rstd, scale *Tensor, accumulate bool) error {
	return d.check(C.fx_adaln_backward(d.ctx, dx.c(), dshift.c(), dscale.c(), dy.c(), x.c(), mean.c(), rstd.c(), scale.c(), flag(accumulate)))
}
