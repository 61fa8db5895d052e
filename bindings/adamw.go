package bindings

/*
#cgo noescape fx_grad_sum_squares
#cgo nocallback fx_grad_sum_squares
#cgo noescape fx_adamw_step
#cgo nocallback fx_adamw_step
#include "fluxir.h"
*/
import "C"

import "unsafe"

// AdamWParam is one parameter of n contiguous elements, as fx_adamw_param. All pointers are device addresses. Param is the working copy that the model
// reads, in DType; if that is F32 it may be Master itself.
type AdamWParam struct {
	Param  unsafe.Pointer
	DType  DType // F32 or BF16
	_      int32
	Master unsafe.Pointer // F32, as M, V, Grad and EMA
	M      unsafe.Pointer
	V      unsafe.Pointer
	Grad   unsafe.Pointer
	EMA    unsafe.Pointer // average of Master over the steps, nil: none
	N      int64
}

// AdamWArgs are the settings of one step, as fx_adamw_args.
type AdamWArgs struct {
	LR, Beta1, Beta2, Eps, WeightDecay float32

	Clip     float32 // largest global norm; 0: no clipping
	EMADecay float32 // 0..1, read where a parameter has an EMA
	_        int32
	Step     int64 // 1 for the first
}

// first is the C view of params, nil when there are none.
func first(params []AdamWParam) *C.fx_adamw_param {
	return (*C.fx_adamw_param)(unsafe.Pointer(unsafe.SliceData(params)))
}

// c is the C view of a.
func (a *AdamWArgs) c() *C.fx_adamw_args { return (*C.fx_adamw_args)(unsafe.Pointer(a)) }

// GradSumSquares: out [1] F32 = Σ grad² over all parameters, in a fixed order: the square of the global norm. Only Grad and N are read. See
// fx_grad_sum_squares.
func (d *Device) GradSumSquares(out *Tensor, params []AdamWParam) error {
	return d.check(C.fx_grad_sum_squares(d.ctx, out.c(), first(params), C.int64_t(len(params))))
}

// AdamWStep updates master, m, v, the working copies and the averages. sumSquares [1] F32 comes from GradSumSquares, nil when args.Clip is 0. See fx_adamw_step.
func (d *Device) AdamWStep(params []AdamWParam, sumSquares *Tensor, args *AdamWArgs) error {
	return d.check(C.fx_adamw_step(d.ctx, first(params), C.int64_t(len(params)), sumSquares.c(), args.c()))
}
