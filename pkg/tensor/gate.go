package tensor

import "github.com/fluxir/fluxir/bindings"

// Gate is x + alpha · gate_b ⊙ r: the gated residual, and the SE broadcast. x, r [B,L,C]; gate [B,C] of x's dtype or F32.
func (t *Tape) Gate(x, gate, r *Tensor, alpha float32) *Tensor {
	y := t.allocLike(x)
	t.gate(y, x, gate, r, alpha, []*Tensor{y})
	return y
}

// GateTo is Gate into y, a view of a tensor from New.
func (t *Tape) GateTo(y, x, gate, r *Tensor, alpha float32) { t.gate(y, x, gate, r, alpha, nil) }

func (t *Tape) gate(y, x, gate, r *Tensor, alpha float32, owned []*Tensor) {
	t.run("gate", func() error { return t.device.GateForward(y.view, x.view, gate.view, r.view, alpha) })
	if !t.grads(x, gate, r) {
		return
	}
	t.push("gate", y, owned, func() error {
		if gate.NeedsGrad() || r.NeedsGrad() {
			err := t.contributeAll([]*Tensor{gate}, func(d []*bindings.Tensor) error {
				return t.contributeAdding(r, func(dr *bindings.Tensor, accumulate bool) error {
					return t.device.GateBackward(dr, d[0], y.grad(), gate.view, r.view, alpha, accumulate)
				})
			})
			if err != nil {
				return err
			}
		}
		return t.passOn(x, y)
	})
}
