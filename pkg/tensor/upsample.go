package tensor

import "github.com/fluxir/fluxir/bindings"

// Upsample doubles height and width by nearest neighbour: x [B,Y,X,C] -> [B,2Y,2X,C].
func (t *Tape) Upsample(x *Tensor) *Tensor {
	y := t.alloc(x.DType(), x.Dim(0), 2*x.Dim(1), 2*x.Dim(2), x.Dim(3))
	t.run("upsample", func() error { return t.device.UpsampleForward(y.view, x.view) })
	if t.grads(x) {
		t.push("upsample", y, []*Tensor{y}, func() error {
			return t.contribute(x, func(dx *bindings.Tensor) error { return t.device.UpsampleBackward(dx, y.grad()) })
		})
	}
	return y
}
