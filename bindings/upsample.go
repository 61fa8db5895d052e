package bindings

/*
#cgo noescape fx_upsample_forward
#cgo nocallback fx_upsample_forward
#cgo noescape fx_upsample_backward
#cgo nocallback fx_upsample_backward
#include "fluxir.h"
*/
import "C"

// UpsampleForward is nearest neighbour to twice the size: x [B,Y,X,C], y [B,2Y,2X,C]. See fx_upsample_forward.
func (d *Device) UpsampleForward(y, x *Tensor) error {
	return d.check(C.fx_upsample_forward(d.ctx, y.c(), x.c()))
}

// UpsampleBackward: dx is the sum of the four pixels of dy. See fx_upsample_backward.
func (d *Device) UpsampleBackward(dx, dy *Tensor) error {
	return d.check(C.fx_upsample_backward(d.ctx, dx.c(), dy.c()))
}
