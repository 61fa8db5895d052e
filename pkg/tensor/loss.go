package tensor

import "github.com/fluxir/fluxir/bindings"

// FlowLoss is mean (v − (z1 − z0))²: [1] F32. z0, z1 F32.
func (t *Tape) FlowLoss(v, z0, z1 *Tensor) *Tensor {
	loss := t.alloc(bindings.F32, 1)
	t.run("flow_loss", func() error { return t.device.FlowLossForward(loss.view, v.view, z0.view, z1.view) })
	if t.grads(v) {
		t.push("flow_loss", loss, []*Tensor{loss}, func() error {
			return t.contribute(v, func(dv *bindings.Tensor) error {
				return t.device.FlowLossBackward(dv, loss.grad(), v.view, z0.view, z1.view)
			})
		})
	}
	return loss
}

// PixelLoss is the mean over the batch of weight_b · mean ρ(x − target): [1] F32. target F32; weight [B] F32 or nil.
func (t *Tape) PixelLoss(x, target, weight *Tensor, distance bindings.Distance) *Tensor {
	loss := t.alloc(bindings.F32, 1)
	t.run("pixel_loss", func() error {
		return t.device.PixelLossForward(loss.view, x.view, target.view, weight.optional(), distance)
	})
	if t.grads(x) {
		t.push("pixel_loss", loss, []*Tensor{loss}, func() error {
			return t.contribute(x, func(dx *bindings.Tensor) error {
				return t.device.PixelLossBackward(dx, loss.grad(), x.view, target.view, weight.optional(), distance)
			})
		})
	}
	return loss
}
