package tensor

import "github.com/fluxir/fluxir/bindings"

// AddTo is a + b into y, a view of a tensor from New.
func (t *Tape) AddTo(y, a, b *Tensor) { t.add(y, a, b, nil) }

// Add is a + b.
func (t *Tape) Add(a, b *Tensor) *Tensor {
	y := t.allocLike(a)
	t.add(y, a, b, []*Tensor{y})
	return y
}

func (t *Tape) add(y, a, b *Tensor, owned []*Tensor) {
	t.run("add", func() error { return t.device.Add(y.view, a.view, b.view) })
	if t.grads(a, b) {
		t.push("add", y, owned, func() error {
			if err := t.contributeCopy(b, y.grad()); err != nil {
				return err
			}
			return t.passOn(a, y)
		})
	}
}

// Axpby is p_b · x + q_b · w per item of the batch, in dtype. p, q [B] F32; w and q nil: p_b · x.
func (t *Tape) Axpby(x, w, p, q *Tensor, dtype bindings.DType) *Tensor {
	y := t.alloc(dtype, x.Shape()...)
	t.run("axpby", func() error {
		return t.device.AxpbyForward(y.view, x.view, w.optional(), p.view, q.optional())
	})
	if t.grads(x, w) {
		t.push("axpby", y, []*Tensor{y}, func() error {
			inputs := []*Tensor{x}
			if w != nil {
				inputs = append(inputs, w)
			}
			return t.contributeAll(inputs, func(d []*bindings.Tensor) error {
				var dw *bindings.Tensor
				if w != nil {
					dw = d[1]
				}
				return t.device.AxpbyBackward(d[0], dw, y.grad(), p.view, q.optional())
			})
		})
	}
	return y
}

// TimestepEmbed is the sinusoid of factor · time: time [B] F32 -> [B,dim] in dtype. A leaf.
func (t *Tape) TimestepEmbed(time *Tensor, dim int, factor, maxPeriod float64, dtype bindings.DType) *Tensor {
	y := t.New(dtype, time.Dim(0), dim)
	t.run("timestep_embed", func() error { return t.device.TimestepEmbed(y.view, time.view, factor, maxPeriod) })
	return y
}
