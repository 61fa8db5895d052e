package bindings

/*
#cgo noescape fx_conv2d_forward
#cgo nocallback fx_conv2d_forward
#cgo noescape fx_conv2d_backward
#cgo nocallback fx_conv2d_backward
#include "fluxir.h"
*/
import "C"

// Conv2DArgs is the geometry of a convolution: the stride of both directions, 1 or 2, and the zeros around the image.
type Conv2DArgs struct {
	Stride                               int
	PadTop, PadLeft, PadBottom, PadRight int
}

func (a Conv2DArgs) c() C.fx_conv2d_args {
	return C.fx_conv2d_args{
		stride:  C.int32_t(a.Stride),
		pad_top: C.int32_t(a.PadTop), pad_left: C.int32_t(a.PadLeft),
		pad_bottom: C.int32_t(a.PadBottom), pad_right: C.int32_t(a.PadRight),
	}
}

// Conv2DForward: x [B,Y,X,I]; w [O,I,KY,KX] contiguous; b [O] or nil; y [B,Y',X',O] with Y' = (Y + pads − KY)/stride + 1. See fx_conv2d_forward.
func (d *Device) Conv2DForward(y, x, w, b *Tensor, args Conv2DArgs) error {
	c := args.c()
	return d.check(C.fx_conv2d_forward(d.ctx, y.c(), x.c(), w.c(), b.c(), &c))
}

// Conv2DBackward: dx =, dw += and db += in F32; each may be nil. See fx_conv2d_backward.
func (d *Device) Conv2DBackward(dx, dw, db, dy, x, w *Tensor, args Conv2DArgs) error {
	c := args.c()
	return d.check(C.fx_conv2d_backward(d.ctx, dx.c(), dw.c(), db.c(), dy.c(), x.c(), w.c(), &c))
}
