package bindings

/*
#cgo noescape fx_se_squeeze_forward
#cgo nocallback fx_se_squeeze_forward
#cgo noescape fx_se_squeeze_backward
#cgo nocallback fx_se_squeeze_backward
#cgo noescape fx_se_excite_forward
#cgo nocallback fx_se_excite_forward
#cgo noescape fx_se_excite_backward
#cgo nocallback fx_se_excite_backward
#include "fluxir.h"
*/
import "C"

// SESqueezeForward: m = mean over L of x. x [B,L,C]; m [B,C] F32. See fx_se_squeeze_forward.
func (d *Device) SESqueezeForward(m, x *Tensor) error {
	return d.check(C.fx_se_squeeze_forward(d.ctx, m.c(), x.c()))
}

// SESqueezeBackward: dx = dm / L, broadcast over L. See fx_se_squeeze_backward.
func (d *Device) SESqueezeBackward(dx, dm *Tensor) error {
	return d.check(C.fx_se_squeeze_backward(d.ctx, dx.c(), dm.c()))
}

// SEExciteForward: u = w1 m + b1, s = sigmoid(w2 silu(u) + b2), a = gain ⊙ s. m, a, s [B,C] and u [B,R] F32; w1 [R,C], b1 [R], w2 [C,R], b2 [C],
// gain [C] F32 or BF16. u and s are saved for backward. See fx_se_excite_forward.
func (d *Device) SEExciteForward(a, u, s, m, w1, b1, w2, b2, gain *Tensor) error {
	return d.check(C.fx_se_excite_forward(d.ctx, a.c(), u.c(), s.c(), m.c(), w1.c(), b1.c(), w2.c(), b2.c(), gain.c()))
}

// SEExciteBackward: dm =; dw1, db1, dw2, db2, dgain += in F32, nil all together when the adapter is frozen. See fx_se_excite_backward.
func (d *Device) SEExciteBackward(dm, dw1, db1, dw2, db2, dgain, da, m, u, s, w1, w2, gain *Tensor) error {
	return d.check(C.fx_se_excite_backward(d.ctx, dm.c(), dw1.c(), db1.c(), dw2.c(), db2.c(), dgain.c(), da.c(), m.c(), u.c(), s.c(), w1.c(), w2.c(), gain.c()))
}
