package bindings

/*
#cgo noescape fx_add
#cgo nocallback fx_add
#cgo noescape fx_axpby_forward
#cgo nocallback fx_axpby_forward
#cgo noescape fx_axpby_backward
#cgo nocallback fx_axpby_backward
#cgo noescape fx_timestep_embed
#cgo nocallback fx_timestep_embed
#include "fluxir.h"
*/
import "C"

// Add: y = a + b, same shape and dtype, rank up to 4; y may alias a or b. See fx_add.
func (d *Device) Add(y, a, b *Tensor) error {
	return d.check(C.fx_add(d.ctx, y.c(), a.c(), b.c()))
}

// AxpbyForward: y[b,..] = p[b] x[b,..] + q[b] w[b,..]. x, w, y any F32 / BF16 mix of one shape, rank 1..4; p, q [B] F32; w and q may be nil together; y may
// alias x or w. See fx_axpby_forward.
func (d *Device) AxpbyForward(y, x, w, p, q *Tensor) error {
	return d.check(C.fx_axpby_forward(d.ctx, y.c(), x.c(), w.c(), p.c(), q.c()))
}

// AxpbyBackward: dx = p dy, dw = q dy; either may be nil. See fx_axpby_backward.
func (d *Device) AxpbyBackward(dx, dw, dy, p, q *Tensor) error {
	return d.check(C.fx_axpby_backward(d.ctx, dx.c(), dw.c(), dy.c(), p.c(), q.c()))
}

// TimestepEmbed: y [B,dim] = (cos(a), sin(a)), a_i = factor · t · maxPeriod^(-i/(dim/2)), in float64. t [B] F32; dim even. See fx_timestep_embed.
func (d *Device) TimestepEmbed(y, t *Tensor, factor, maxPeriod float64) error {
	return d.check(C.fx_timestep_embed(d.ctx, y.c(), t.c(), C.double(factor), C.double(maxPeriod)))
}
