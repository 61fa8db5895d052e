package tensor

import "github.com/fluxir/fluxir/bindings"

// RopeTable is the rotation table [L, D/2, 2] F32 of position ids [L,3] (F32), for head dims split over three axes. A leaf.
func (t *Tape) RopeTable(ids *Tensor, axes [3]int, theta float64) *Tensor {
	pe := t.New(bindings.F32, ids.Dim(0), (axes[0]+axes[1]+axes[2])/2, 2)
	t.run("rope_table", func() error {
		return t.device.RopeTable(pe.view, ids.view, [3]int32{int32(axes[0]), int32(axes[1]), int32(axes[2])}, theta)
	})
	return pe
}

// QKNormRopeTo is rope(rmsnorm(x) · weight) into y: per token and head. x, y [B,L,H,D]; weight [D]; pe of RopeTable, for x's L tokens.
func (t *Tape) QKNormRopeTo(y, x, weight, pe *Tensor, eps float32) {
	var rstd *Tensor
	grads := t.grads(x, weight)
	if grads {
		rstd = t.alloc(bindings.F32, x.Dim(0), x.Dim(1), x.Dim(2))
	}
	t.run("qk_norm_rope", func() error {
		return t.device.QKNormRopeForward(y.view, rstd.optional(), x.view, weight.view, pe.view, eps)
	})
	if !grads {
		return
	}
	t.push("qk_norm_rope", y, []*Tensor{rstd}, func() error {
		return t.contribute(x, func(dx *bindings.Tensor) error {
			return t.device.QKNormRopeBackward(dx, weight.paramGrad(), y.grad(), x.view, rstd.view, weight.view, pe.view)
		})
	})
}
