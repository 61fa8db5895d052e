package tensor

import "github.com/fluxir/fluxir/bindings"

// Conv2DArgs are stride and padding; see fx_conv2d_args.
type Conv2DArgs = bindings.Conv2DArgs

// Conv2D is a convolution. x [B,Y,X,I]; w [O,I,KY,KX]; b [O] or nil.
func (t *Tape) Conv2D(x, w, b *Tensor, args Conv2DArgs) *Tensor {
	out := func(in, kernel, before, after int) int {
		return (in+before+after-kernel)/args.Stride + 1
	}
	y := t.alloc(x.DType(), x.Dim(0), out(x.Dim(1), w.Dim(2), args.PadTop, args.PadBottom),
		out(x.Dim(2), w.Dim(3), args.PadLeft, args.PadRight), w.Dim(0))
	flops := 2 * int64(y.Len()) * int64(x.Dim(3)*w.Dim(2)*w.Dim(3))
	t.flops += flops
	t.run("conv2d", func() error { return t.device.Conv2DForward(y.view, x.view, w.view, b.optional(), args) })
	if !t.grads(x, w, b) {
		return y
	}
	t.push("conv2d", y, []*Tensor{y}, func() error {
		dw, db := w.paramGrad(), b.paramGrad()
		if dw != nil {
			t.flops += flops
		}
		if !x.NeedsGrad() {
			return t.device.Conv2DBackward(nil, dw, db, y.grad(), x.view, w.view, args)
		}
		t.flops += flops
		return t.contribute(x, func(dx *bindings.Tensor) error {
			return t.device.Conv2DBackward(dx, dw, db, y.grad(), x.view, w.view, args)
		})
	})
	return y
}
