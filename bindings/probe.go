package bindings

/*
#cgo noescape fx_ctx_probe
#cgo nocallback fx_ctx_probe
#include "fluxir.h"
*/
import "C"

import "time"

// Probe is a peak of a device that can be measured.
type Probe int32

// The probes of fluxir.h.
const (
	ProbeF32    Probe = C.FX_PROBE_F32    // GFLOP/s of f32 multiply-adds in registers
	ProbeBF16   Probe = C.FX_PROBE_BF16   // GFLOP/s of bf16 dot products in vector registers
	ProbeMatrix Probe = C.FX_PROBE_MATRIX // GFLOP/s of bf16 products in matrix units
	ProbeTriad  Probe = C.FX_PROBE_TRIAD  // GB/s of memory
)

// Probe measures a peak for about the given time. An *Error with StatusUnsupported says that the device has no such unit. Call inside Do.
func (d *Device) Probe(kind Probe, duration time.Duration) (float64, error) {
	var rate C.double
	err := d.check(C.fx_ctx_probe(d.ctx, C.fx_probe_kind(kind), C.double(duration.Seconds()), &rate))
	return float64(rate), err
}
