package bindings

/*
#cgo noescape fx_attention_forward
#cgo nocallback fx_attention_forward
#cgo noescape fx_attention_backward
#cgo nocallback fx_attention_backward
#include "fluxir.h"
*/
import "C"

// AttentionForward: o = softmax(scale · q kᵀ) v per head. q, o [B,Lq,H,D]; k, v [B,Lk,H,D]; D a multiple of 8, at most 512. lse [B,H,Lq] F32 is the
// log-sum-exp of the scaled scores, saved for backward, nil if not wanted. See fx_attention_forward.
func (d *Device) AttentionForward(o, lse, q, k, v *Tensor, scale float32) error {
	return d.check(C.fx_attention_forward(d.ctx, o.c(), lse.c(), q.c(), k.c(), v.c(), C.float(scale)))
}

// AttentionBackward: dq, dk, dv of AttentionForward, all wanted; dO is the gradient of o. The probabilities are recomputed from lse. Deterministic. See
// fx_attention_backward.
func (d *Device) AttentionBackward(dq, dk, dv, dO, q, k, v, o, lse *Tensor, scale float32) error {
	return d.check(C.fx_attention_backward(d.ctx, dq.c(), dk.c(), dv.c(), dO.c(), q.c(), k.c(), v.c(), o.c(), lse.c(), C.float(scale)))
}
