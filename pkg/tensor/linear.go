package tensor

import "github.com/fluxir/fluxir/bindings"

// Linear is x wᵀ + b. x [B,L,I] or [M,I]; w [O,I]; b [O] or nil.
func (t *Tape) Linear(x, w, b *Tensor) *Tensor { return t.LinearAct(x, w, b, bindings.ActNone) }

// LinearTo is Linear into y, a view of a tensor from New.
func (t *Tape) LinearTo(y, x, w, b *Tensor) { t.linear(y, x, w, b, epilogue{}, nil) }

// LinearAct is act(x wᵀ + b).
func (t *Tape) LinearAct(x, w, b *Tensor, act bindings.Act) *Tensor {
	y := t.alloc(x.DType(), linearShape(x, w)...)
	t.linear(y, x, w, b, epilogue{act: act}, []*Tensor{y})
	return y
}

// LinearActTo is LinearAct into y, a view of a tensor from New.
func (t *Tape) LinearActTo(y, x, w, b *Tensor, act bindings.Act) {
	t.linear(y, x, w, b, epilogue{act: act}, nil)
}

// LinearGate is residual + gate_b ⊙ (x wᵀ + b): a gated residual. x [B,L,I]; residual [B,L,O]; gate [B,O].
func (t *Tape) LinearGate(x, w, b, residual, gate *Tensor) *Tensor {
	y := t.alloc(x.DType(), linearShape(x, w)...)
	t.linear(y, x, w, b, epilogue{residual: residual, gate: gate}, []*Tensor{y})
	return y
}

func linearShape(x, w *Tensor) []int {
	shape := x.Shape()
	shape[len(shape)-1] = w.Dim(0)
	return shape
}

// linearFLOPs of one product.
func linearFLOPs(x, w *Tensor) int64 { return 2 * int64(x.Len()) * int64(w.Dim(0)) }

// epilogue is what follows the product in the same op: an activation, or a gated residual, or nothing.
type epilogue struct {
	act            bindings.Act
	residual, gate *Tensor
}

func (t *Tape) linear(y, x, w, b *Tensor, e epilogue, owned []*Tensor) {
	t.flops += linearFLOPs(x, w)
	grads := t.grads(x, w, b, e.residual, e.gate)
	var pre *Tensor
	if grads && (e.act != bindings.ActNone || e.gate.NeedsGrad()) {
		pre = t.allocLike(y)
	}
	t.run("linear", func() error {
		return t.device.LinearForward(y.view, pre.optional(), x.view, e.residual.optional(), e.gate.optional(), w.view, b.optional(), e.act)
	})
	if !grads {
		return
	}
	t.push("linear", y, append(owned, pre), func() error {
		dw, db := w.paramGrad(), b.paramGrad()
		for _, wanted := range []bool{dw != nil, x.NeedsGrad()} {
			if wanted {
				t.flops += linearFLOPs(x, w)
			}
		}
		err := t.contributeAll([]*Tensor{e.gate}, func(d []*bindings.Tensor) error {
			return t.contributeAdding(x, func(dx *bindings.Tensor, accumulate bool) error {
				return t.device.LinearBackward(dx, d[0], dw, db, y.grad(), x.view, e.gate.optional(), w.view, pre.optional(), e.act, accumulate)
			})
		})
		if err != nil {
			return err
		}
		return t.passOn(e.residual, y)
	})
}
