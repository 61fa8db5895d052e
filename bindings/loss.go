package bindings

/*
#cgo noescape fx_flow_loss_forward
#cgo nocallback fx_flow_loss_forward
#cgo noescape fx_flow_loss_backward
#cgo nocallback fx_flow_loss_backward
#cgo noescape fx_pixel_loss_forward
#cgo nocallback fx_pixel_loss_forward
#cgo noescape fx_pixel_loss_backward
#cgo nocallback fx_pixel_loss_backward
#include "fluxir.h"
*/
import "C"

// Distance is the penalty ρ of the pixel loss.
type Distance int32

// The distances of fluxir.h.
const (
	DistanceL1          Distance = C.FX_DISTANCE_L1          // |e|
	DistanceL2          Distance = C.FX_DISTANCE_L2          // e²
	DistanceCharbonnier Distance = C.FX_DISTANCE_CHARBONNIER // √(e² + 1e-6)
)

// FlowLossForward: loss [1] F32 = mean of (v − (z1 − z0))². v F32 or BF16; z0, z1 F32 of v's shape, rank up to 4. See fx_flow_loss_forward.
func (d *Device) FlowLossForward(loss, v, z0, z1 *Tensor) error {
	return d.check(C.fx_flow_loss_forward(d.ctx, loss.c(), v.c(), z0.c(), z1.c()))
}

// FlowLossBackward: dv = dloss · 2/n · (v − (z1 − z0)). dloss [1] F32. See fx_flow_loss_backward.
func (d *Device) FlowLossBackward(dv, dloss, v, z0, z1 *Tensor) error {
	return d.check(C.fx_flow_loss_backward(d.ctx, dv.c(), dloss.c(), v.c(), z0.c(), z1.c()))
}

// PixelLossForward: loss [1] F32 = mean over b of weight[b] · mean of ρ(x − target). x [B,..] F32 or BF16; target F32; weight [B] F32 or nil (1).
// See fx_pixel_loss_forward.
func (d *Device) PixelLossForward(loss, x, target, weight *Tensor, distance Distance) error {
	return d.check(C.fx_pixel_loss_forward(d.ctx, loss.c(), x.c(), target.c(), weight.c(), C.fx_distance(distance)))
}

// PixelLossBackward: dx of PixelLossForward, overwritten; the gradient of |e| at 0 is 0. See fx_pixel_loss_backward.
func (d *Device) PixelLossBackward(dx, dloss, x, target, weight *Tensor, distance Distance) error {
	return d.check(C.fx_pixel_loss_backward(d.ctx, dx.c(), dloss.c(), x.c(), target.c(), weight.c(), C.fx_distance(distance)))
}
