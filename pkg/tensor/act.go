package tensor

import "github.com/fluxir/fluxir/bindings"

// Act is act(x), elementwise.
func (t *Tape) Act(x *Tensor, act bindings.Act) *Tensor {
	y := t.allocLike(x)
	t.act(y, x, act, []*Tensor{y})
	return y
}

// ActTo is Act into y, a view of a tensor from New.
func (t *Tape) ActTo(y, x *Tensor, act bindings.Act) { t.act(y, x, act, nil) }

func (t *Tape) act(y, x *Tensor, act bindings.Act, owned []*Tensor) {
	t.run("act", func() error { return t.device.ActForward(y.view, x.view, act) })
	if !t.grads(x) {
		return
	}
	t.push("act", y, owned, func() error {
		return t.contribute(x, func(dx *bindings.Tensor) error { return t.device.ActBackward(dx, y.grad(), x.view, act) })
	})
}
