package tensor

import "github.com/fluxir/fluxir/bindings"

// Linear is x wᵀ + b. x [B,L,I] or [M,I]; w [O,I]; b [O] or nil.
func (t *Tape) Linear(x, w, b *Tensor) *Tensor {
	y := t.alloc(x.DType(), linearShape(x, w)...)
	t.linear(y, x, w, b, []*Tensor{y})
	return y
}

// LinearTo is Linear into y, a view of a tensor from New.
func (t *Tape) LinearTo(y, x, w, b *Tensor) { t.linear(y, x, w, b, nil) }

// LinearAct is act(x wᵀ + b). While recording the value before act is kept for the way back; otherwise the two are one op.
func (t *Tape) LinearAct(x, w, b *Tensor, act bindings.Act) *Tensor {
	if t.grads(x, w, b) {
		return t.Act(t.Linear(x, w, b), act)
	}
	y := t.New(x.DType(), linearShape(x, w)...)
	t.flops += linearFLOPs(x, w)
	t.run("linear", func() error { return t.device.LinearForward(y.view, x.view, w.view, b.optional(), act) })
	return y
}

func linearShape(x, w *Tensor) []int {
	shape := x.Shape()
	shape[len(shape)-1] = w.Dim(0)
	return shape
}

// linearFLOPs of one product.
func linearFLOPs(x, w *Tensor) int64 { return 2 * int64(x.Len()) * int64(w.Dim(0)) }

func (t *Tape) linear(y, x, w, b *Tensor, owned []*Tensor) {
	t.flops += linearFLOPs(x, w)
	t.run("linear", func() error {
		return t.device.LinearForward(y.view, x.view, w.view, b.optional(), bindings.ActNone)
	})
	if !t.grads(x, w, b) {
		return
	}
	t.push("linear", y, owned, func() error {
		dw, db := w.paramGrad(), b.paramGrad()
		if dw != nil {
			t.flops += linearFLOPs(x, w)
		}
		if !x.NeedsGrad() {
			return t.device.LinearBackward(nil, dw, db, y.grad(), x.view, w.view)
		}
		t.flops += linearFLOPs(x, w)
		return t.contribute(x, func(dx *bindings.Tensor) error {
			return t.device.LinearBackward(dx, dw, db, y.grad(), x.view, w.view)
		})
	})
}
