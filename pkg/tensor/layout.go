package tensor

import "github.com/fluxir/fluxir/bindings"

// Pack is FLUX's 2x2 packing: x [B,Y,X,C] -> [B,(Y/2)(X/2),4C], channel order (c, dy, dx).
func (t *Tape) Pack(x *Tensor) *Tensor {
	y := t.alloc(x.DType(), x.Dim(0), x.Dim(1)/2*(x.Dim(2)/2), 4*x.Dim(3))
	t.run("pack", func() error { return t.device.Pack(y.view, x.view) })
	if t.grads(x) {
		t.push("pack", y, []*Tensor{y}, func() error {
			return t.contribute(x, func(dx *bindings.Tensor) error { return t.device.Unpack(dx, y.grad()) })
		})
	}
	return y
}

// Unpack is the inverse of Pack, for an image of the given height and width.
func (t *Tape) Unpack(x *Tensor, height, width int) *Tensor {
	y := t.alloc(x.DType(), x.Dim(0), height, width, x.Dim(2)/4)
	t.run("unpack", func() error { return t.device.Unpack(y.view, x.view) })
	if t.grads(x) {
		t.push("unpack", y, []*Tensor{y}, func() error {
			return t.contribute(x, func(dx *bindings.Tensor) error { return t.device.Pack(dx, y.grad()) })
		})
	}
	return y
}

// Cast converts to dtype; x itself where it has that dtype already.
func (t *Tape) Cast(x *Tensor, dtype bindings.DType) *Tensor {
	if x.DType() == dtype {
		return x
	}
	y := t.alloc(dtype, x.Shape()...)
	t.layout(y, x, []*Tensor{y})
	return y
}

// Copy is a contiguous copy of a view.
func (t *Tape) Copy(x *Tensor) *Tensor {
	y := t.allocLike(x)
	t.layout(y, x, []*Tensor{y})
	return y
}

// CopyTo copies (and converts) x into y, a view of a tensor from New.
func (t *Tape) CopyTo(y, x *Tensor) { t.layout(y, x, nil) }

func (t *Tape) layout(y, x *Tensor, owned []*Tensor) {
	t.run("layout", func() error { return t.device.Layout(y.view, x.view) })
	if t.grads(x) {
		t.push("layout", y, owned, func() error {
			return t.contribute(x, func(dx *bindings.Tensor) error { return t.device.Layout(dx, y.grad()) })
		})
	}
}

// Repeat gives every item of a batch the same parameter: theta [..] -> [batch, ..] in dtype. Its gradient is the sum over the batch.
func (t *Tape) Repeat(theta *Tensor, batch int, dtype bindings.DType) *Tensor {
	shape := append([]int{batch}, theta.Shape()...)
	y := t.alloc(dtype, shape...)
	wide := bindings.NewTensor(theta.view.Data, theta.DType(), shape...)
	wide.Strides[0] = 0
	t.run("repeat", func() error { return t.device.Layout(y.view, &wide) })
	if t.grads(theta) {
		t.push("repeat", y, []*Tensor{y}, func() error {
			if dp := theta.paramGrad(); dp != nil {
				return t.device.SumBatch(dp, y.grad(), true)
			}
			return t.contribute(theta, func(dx *bindings.Tensor) error { return t.device.SumBatch(dx, y.grad(), false) })
		})
	}
	return y
}

// Concat joins a and b, of rank 3, along dimension 1 by copying.
func (t *Tape) Concat(a, b *Tensor) *Tensor {
	y := t.New(a.DType(), a.Dim(0), a.Dim(1)+b.Dim(1), a.Dim(2))
	t.CopyTo(y.Slice(1, 0, a.Dim(1)), a)
	t.CopyTo(y.Slice(1, a.Dim(1), y.Dim(1)), b)
	return y
}

// Fill sets a leaf, or a part of a tensor from New, to a constant.
func (t *Tape) Fill(y *Tensor, value float32) *Tensor {
	t.run("fill", func() error { return t.device.Fill(y.view, value) })
	return y
}
