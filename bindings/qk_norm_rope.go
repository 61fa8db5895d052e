package bindings

/*
#cgo noescape fx_rope_table
#cgo nocallback fx_rope_table
#cgo noescape fx_qk_norm_rope_forward
#cgo nocallback fx_qk_norm_rope_forward
#cgo noescape fx_qk_norm_rope_backward
#cgo nocallback fx_qk_norm_rope_backward
#include "fluxir.h"
*/
import "C"

// RopeTable: pe [L,D/2,2] F32 = (cos, sin) of ids[l,axis] · theta^(-2i/axes[axis]), angles in float64. ids [L,3] F32; axes: the dims of the three axes,
// even, summing to D. See fx_rope_table.
func (d *Device) RopeTable(pe, ids *Tensor, axes [3]int32, theta float64) error {
	return d.check(C.fx_rope_table(d.ctx, pe.c(), ids.c(), (*C.int32_t)(&axes[0]), C.double(theta)))
}

// QKNormRopeForward: y = rope(rmsnorm(x) · weight) per token and head. x, y [B,L,H,D]; rstd [B,L,H] F32, saved for backward, may be nil; weight [D] or
// nil (rope alone); pe from RopeTable or nil (RMSNorm alone). y may alias x when no backward follows. See fx_qk_norm_rope_forward.
func (d *Device) QKNormRopeForward(y, rstd, x, weight, pe *Tensor, eps float32) error {
	return d.check(C.fx_qk_norm_rope_forward(d.ctx, y.c(), rstd.c(), x.c(), weight.c(), pe.c(), C.float(eps)))
}

// QKNormRopeBackward: dx = and dweight [D] F32 +=; dweight may be nil. rstd and weight nil as in forward. dx may alias dy. See
// fx_qk_norm_rope_backward.
func (d *Device) QKNormRopeBackward(dx, dweight, dy, x, rstd, weight, pe *Tensor) error {
	return d.check(C.fx_qk_norm_rope_backward(d.ctx, dx.c(), dweight.c(), dy.c(), x.c(), rstd.c(), weight.c(), pe.c()))
}
