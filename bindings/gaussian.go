package bindings

/*
#cgo noescape fx_gaussian_forward
#cgo nocallback fx_gaussian_forward
#cgo noescape fx_gaussian_backward
#cgo nocallback fx_gaussian_backward
#cgo noescape fx_gaussian_kl_forward
#cgo nocallback fx_gaussian_kl_forward
#cgo noescape fx_gaussian_kl_backward
#cgo nocallback fx_gaussian_kl_backward
#include "fluxir.h"
*/
import "C"

// GaussianForward: z = (mean + exp(logvar/2) ⊙ eps − shift) · scale. moments [B,Y,X,2C] = (mean, logvar), logvar clamped to [-30, 20]; z, eps [B,Y,X,C]; eps
// nil: the mean. See fx_gaussian_forward.
func (d *Device) GaussianForward(z, moments, eps *Tensor, shift, scale float32) error {
	return d.check(C.fx_gaussian_forward(d.ctx, z.c(), moments.c(), eps.c(), C.float(shift), C.float(scale)))
}

// GaussianBackward: dmoments of GaussianForward, overwritten. See fx_gaussian_backward.
func (d *Device) GaussianBackward(dmoments, dz, moments, eps *Tensor, scale float32) error {
	return d.check(C.fx_gaussian_backward(d.ctx, dmoments.c(), dz.c(), moments.c(), eps.c(), C.float(scale)))
}

// GaussianKLForward: kl [1] F32 = mean over B of ½ Σ (mean² + exp(logvar) − 1 − logvar). See fx_gaussian_kl_forward.
func (d *Device) GaussianKLForward(kl, moments *Tensor) error {
	return d.check(C.fx_gaussian_kl_forward(d.ctx, kl.c(), moments.c()))
}

// GaussianKLBackward: dmoments of GaussianKLForward, overwritten. dkl [1] F32. See fx_gaussian_kl_backward.
func (d *Device) GaussianKLBackward(dmoments, dkl, moments *Tensor) error {
	return d.check(C.fx_gaussian_kl_backward(d.ctx, dmoments.c(), dkl.c(), moments.c()))
}
