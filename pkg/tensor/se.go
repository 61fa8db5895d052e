package tensor

import "github.com/fluxir/fluxir/bindings"

// SESqueeze is the mean over tokens: x [B,L,C] -> [B,C] F32.
func (t *Tape) SESqueeze(x *Tensor) *Tensor {
	m := t.alloc(bindings.F32, x.Dim(0), x.Dim(2))
	t.run("se_squeeze", func() error { return t.device.SESqueezeForward(m.view, x.view) })
	if t.grads(x) {
		t.push("se_squeeze", m, []*Tensor{m}, func() error {
			return t.contribute(x, func(dx *bindings.Tensor) error { return t.device.SESqueezeBackward(dx, m.grad()) })
		})
	}
	return m
}

// SEWeights are the parameters of one squeeze-and-excitation layer: W1 [R,C], B1 [R], W2 [C,R], B2 [C], Gain [C].
type SEWeights struct{ W1, B1, W2, B2, Gain *Tensor }

// SEExcite is gain ⊙ sigmoid(w2 silu(w1 m + b1) + b2), in F32. m [B,C] -> [B,C] F32.
func (t *Tape) SEExcite(m *Tensor, w *SEWeights) *Tensor {
	a := t.alloc(bindings.F32, m.Shape()...)
	u, s := t.alloc(bindings.F32, m.Dim(0), w.W1.Dim(0)), t.alloc(bindings.F32, m.Shape()...)
	t.run("se_excite", func() error {
		return t.device.SEExciteForward(a.view, u.view, s.view, m.view, w.W1.view, w.B1.view, w.W2.view, w.B2.view, w.Gain.view)
	})
	if !t.grads(m, w.W1, w.B1, w.W2, w.B2, w.Gain) {
		return a
	}
	t.push("se_excite", a, []*Tensor{a, u, s}, func() error {
		back := func(dm *bindings.Tensor) error {
			return t.device.SEExciteBackward(dm, w.W1.paramGrad(), w.B1.paramGrad(), w.W2.paramGrad(), w.B2.paramGrad(), w.Gain.paramGrad(),
				a.grad(), m.view, u.view, s.view, w.W1.view, w.W2.view, w.Gain.view)
		}
		if m.NeedsGrad() {
			return t.contribute(m, back)
		}
		unwanted := t.allocLike(m)
		defer unwanted.root.recycle()
		return back(unwanted.view)
	})
	return a
}
