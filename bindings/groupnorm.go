package bindings

/*
#cgo noescape fx_groupnorm_forward
#cgo nocallback fx_groupnorm_forward
#cgo noescape fx_groupnorm_backward
#cgo nocallback fx_groupnorm_backward
#include "fluxir.h"
*/
import "C"

// GroupNormArgs are the scalars of a group normalisation.
type GroupNormArgs struct {
	Groups int     // divides the channels
	SiLU   bool    // y = silu(norm)
	Eps    float32 // added to the variance
}

func (a GroupNormArgs) c() C.fx_groupnorm_args {
	c := C.fx_groupnorm_args{groups: C.int32_t(a.Groups), eps: C.float(a.Eps)}
	if a.SiLU {
		c.silu = 1
	}
	return c
}

// GroupNormForward: x, y [B,Y,X,C]; w, b [C]; mean, rstd [B,Groups] F32, saved for backward, may be nil together. See fx_groupnorm_forward.
func (d *Device) GroupNormForward(y, mean, rstd, x, w, b *Tensor, args GroupNormArgs) error {
	c := args.c()
	return d.check(C.fx_groupnorm_forward(d.ctx, y.c(), mean.c(), rstd.c(), x.c(), w.c(), b.c(), &c))
}

// GroupNormBackward: dx =; dw += and db += in F32, nil together when frozen. See fx_groupnorm_backward.
func (d *Device) GroupNormBackward(dx, dw, db, dy, x, mean, rstd, w, b *Tensor, args GroupNormArgs) error {
	c := args.c()
	return d.check(C.fx_groupnorm_backward(d.ctx, dx.c(), dw.c(), db.c(), dy.c(), x.c(), mean.c(), rstd.c(), w.c(), b.c(), &c))
}
