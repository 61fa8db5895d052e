package tensor

import "github.com/fluxir/fluxir/bindings"

// Gaussian is (mean + exp(logvar/2) ⊙ eps − shift) · scale in dtype. moments [B,Y,X,2C]; eps [B,Y,X,C], nil for the mean.
func (t *Tape) Gaussian(moments, eps *Tensor, shift, scale float32, dtype bindings.DType) *Tensor {
	z := t.alloc(dtype, moments.Dim(0), moments.Dim(1), moments.Dim(2), moments.Dim(3)/2)
	t.run("gaussian", func() error { return t.device.GaussianForward(z.view, moments.view, eps.optional(), shift, scale) })
	if t.grads(moments) {
		t.push("gaussian", z, []*Tensor{z}, func() error {
			return t.contribute(moments, func(d *bindings.Tensor) error {
				return t.device.GaussianBackward(d, z.grad(), moments.view, eps.optional(), scale)
			})
		})
	}
	return z
}

// GaussianKL is the divergence from N(0, 1), mean over the batch: [1] F32.
func (t *Tape) GaussianKL(moments *Tensor) *Tensor {
	kl := t.alloc(bindings.F32, 1)
	t.run("gaussian_kl", func() error { return t.device.GaussianKLForward(kl.view, moments.view) })
	if t.grads(moments) {
		t.push("gaussian_kl", kl, []*Tensor{kl}, func() error {
			return t.contribute(moments, func(d *bindings.Tensor) error { return t.device.GaussianKLBackward(d, kl.grad(), moments.view) })
		})
	}
	return kl
}
