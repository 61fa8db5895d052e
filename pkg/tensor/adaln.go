package tensor

import "github.com/fluxir/fluxir/bindings"

// AdaLN is layernorm(x) · (1 + scale_b) + shift_b. x [B,L,C]; shift, scale [B,C].
func (t *Tape) AdaLN(x, shift, scale *Tensor, eps float32) *Tensor {
	y := t.allocLike(x)
	var mean, rstd *Tensor
	grads := t.grads(x, shift, scale)
	if grads {
		mean, rstd = t.alloc(bindings.F32, x.Dim(0), x.Dim(1)), t.alloc(bindings.F32, x.Dim(0), x.Dim(1))
	}
	t.run("adaln", func() error {
		return t.device.AdaLNForward(y.view, mean.optional(), rstd.optional(), x.view, shift.view, scale.view, eps)
	})
	if !grads {
		return y
	}
	t.push("adaln", y, []*Tensor{y, mean, rstd}, func() error {
		return t.contributeAll([]*Tensor{shift, scale}, func(d []*bindings.Tensor) error {
			return t.contributeAdding(x, func(dx *bindings.Tensor, accumulate bool) error {
				if dx == nil {
					unwanted := t.allocLike(x)
					defer unwanted.root.recycle()
					dx = unwanted.view
				}
				return t.device.AdaLNBackward(dx, d[0], d[1], y.grad(), x.view, mean.view, rstd.view, scale.view, accumulate)
			})
		})
	})
	return y
}
