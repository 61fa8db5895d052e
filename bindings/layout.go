package bindings

/*
#cgo noescape fx_pack
#cgo nocallback fx_pack
#cgo noescape fx_unpack
#cgo nocallback fx_unpack
#cgo noescape fx_layout
#cgo nocallback fx_layout
#cgo noescape fx_fill
#cgo nocallback fx_fill
#cgo noescape fx_sum_batch
#cgo nocallback fx_sum_batch
#include "fluxir.h"
*/
import "C"

// Pack is FLUX's 2x2 packing: x [B,Y,X,C], Y and X even -> y [B,(Y/2)(X/2),4C], channel c·4 + dy·2 + dx. Its backward is Unpack. See fx_pack.
func (d *Device) Pack(y, x *Tensor) error {
	return d.check(C.fx_pack(d.ctx, y.c(), x.c()))
}

// Unpack: x [B,(Y/2)(X/2),4C] -> y [B,Y,X,C]; its backward is Pack. See fx_unpack.
func (d *Device) Unpack(y, x *Tensor) error {
	return d.check(C.fx_unpack(d.ctx, y.c(), x.c()))
}

// Layout: y = x with any strides on both sides (stride 0 in x broadcasts) and conversion among F32, BF16 and F16, round to nearest even. Same
// shape, rank up to 5. See fx_layout.
func (d *Device) Layout(y, x *Tensor) error {
	return d.check(C.fx_layout(d.ctx, y.c(), x.c()))
}

// Fill: y = value. See fx_fill.
func (d *Device) Fill(y *Tensor, value float32) error {
	return d.check(C.fx_fill(d.ctx, y.c(), C.float(value)))
}

// SumBatch: dx [..] = sum over b of dy [B,..], or += with accumulate (dx F32): the backward of a broadcast over the batch. See fx_sum_batch.
func (d *Device) SumBatch(dx, dy *Tensor, accumulate bool) error {
	return d.check(C.fx_sum_batch(d.ctx, dx.c(), dy.c(), flag(accumulate)))
}

// flag is a C truth value.
func flag(on bool) C.int32_t {
	if on {
		return 1
	}
	return 0
}
