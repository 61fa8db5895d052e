package tensor

import "github.com/fluxir/fluxir/bindings"

// GroupNormArgs are groups, eps and a fused SiLU; see fx_groupnorm_args.
type GroupNormArgs = bindings.GroupNormArgs

// GroupNorm normalises x [B,Y,X,C] per item and group of channels; w, b [C].
func (t *Tape) GroupNorm(x, w, b *Tensor, args GroupNormArgs) *Tensor {
	y := t.allocLike(x)
	var mean, rstd *Tensor
	grads := t.grads(x, w, b)
	if grads {
		mean, rstd = t.alloc(bindings.F32, x.Dim(0), args.Groups), t.alloc(bindings.F32, x.Dim(0), args.Groups)
	}
	t.run("groupnorm", func() error {
		return t.device.GroupNormForward(y.view, mean.optional(), rstd.optional(), x.view, w.view, b.view, args)
	})
	if !grads {
		return y
	}
	t.push("groupnorm", y, []*Tensor{y, mean, rstd}, func() error {
		back := func(dx *bindings.Tensor) error {
			return t.device.GroupNormBackward(dx, w.paramGrad(), b.paramGrad(), y.grad(), x.view, mean.view, rstd.view, w.view, b.view, args)
		}
		if x.NeedsGrad() {
			return t.contribute(x, back)
		}
		unwanted := t.allocLike(x)
		defer unwanted.root.recycle()
		return back(unwanted.view)
	})
	return y
}
