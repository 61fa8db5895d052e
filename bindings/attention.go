package bindings

/*
#cgo noescape fx_attention_forward
#cgo nocallback fx_attention_forward
#cgo noescape fx_attention_backward
#cgo nocallback fx_attention_backward
#include "fluxir.h"
*/
import "C"

// QKNorm is what an attention over [text; image] does to the rows of q and k before their product: rope(rmsnorm(x) · weight) per token and head.
type QKNorm struct {
	Query, Key   [2]*Tensor // weights [D]: of the tokens before Split and of the others; all nil: no norm
	DQuery, DKey [2]*Tensor // their gradients [D] F32 +=, each may be nil; for AttentionBackward
	PE           *Tensor    // [L,D/2,2] F32 of RopeTable; nil: no rotation
	Split        int        // in [0, L]; weights of no token may be nil
	Eps          float32
}

func (n *QKNorm) c() *C.fx_qk_norm {
	if n == nil {
		return nil
	}
	norm := &C.fx_qk_norm{split: C.int64_t(n.Split), eps: C.float(n.Eps), pe: n.PE.value()}
	for i := range 2 {
		norm.query[i], norm.key[i] = n.Query[i].value(), n.Key[i].value()
		norm.dquery[i], norm.dkey[i] = n.DQuery[i].value(), n.DKey[i].value()
	}
	return norm
}

// value is the tensor as a field of a C struct: rank 0 where it is nil.
func (t *Tensor) value() (v C.fx_tensor) {
	if t != nil {
		v = *t.c()
	}
	return v
}

// AttentionForward: o = softmax(scale · q' k'ᵀ) v per head; q' and k' are q and k as norm makes them, nil: as they are. q, o [B,Lq,H,D]; k, v
// [B,Lk,H,D]; D a multiple of 8, at most 512. lse [B,H,Lq] F32 is the log-sum-exp of the scaled scores, saved for backward, nil if not wanted. See
// fx_attention_forward.
func (d *Device) AttentionForward(o, lse, q, k, v *Tensor, norm *QKNorm, scale float32) error {
	return d.check(C.fx_attention_forward(d.ctx, o.c(), lse.c(), q.c(), k.c(), v.c(), norm.c(), C.float(scale)))
}

// AttentionBackward: dq, dk, dv of AttentionForward, all wanted, dq and dk of q and k before norm; dO is the gradient of o. The probabilities are
// recomputed from lse. Deterministic. See fx_attention_backward.
func (d *Device) AttentionBackward(dq, dk, dv, dO, q, k, v, o, lse *Tensor, norm *QKNorm, scale float32) error {
	return d.check(C.fx_attention_backward(d.ctx, dq.c(), dk.c(), dv.c(), dO.c(), q.c(), k.c(), v.c(), o.c(), lse.c(), norm.c(), C.float(scale)))
}
