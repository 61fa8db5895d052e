package model

import (
	"context"
	"fmt"
	"slices"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// SampleOptions say how latents go from noise to data (spec §5).
type SampleOptions struct {
	Steps    int     // Euler steps, at least 1
	Start    float64 // the first time, 0 < Start <= 1: 1 starts from noise, less from (1-Start)·z_lq + Start·z_1
	Shift    bool    // FLUX's resolution shift of the times; off for FLUX.1-schnell
	Lambda   float32 // strength of the adapter's broadcast, 1 as trained
	Guidance float32 // g, read by bases with guidance_in only
	// The base's text [B,T,J] and pooled text [B,Y], as Input has them; nil with an adapter that has learned its own.
	Prompt, Pooled *tensor.Tensor
	// Graphs, if not nil, records evaluations of one shape as a graph where the device has graphs (tensor.Graphs). Prompt and Pooled are then always the same.
	Graphs *tensor.Graphs
}

// Times are the Steps+1 times of a run on latents of so many tokens, from Start down to 0.
func (o SampleOptions) Times(tokens int) ([]float64, error) {
	mu := 0.0
	if o.Shift {
		mu = ShiftMu(tokens)
	}
	return Sigmas(o.Steps, o.Start, mu)
}

// Noise fills values with z_1 for the elements offset, offset+1, ... of an image's latent, numbered in [h, w, c] order of the
// whole latent: every tile that covers an element, and every backend, sees the same number (spec §7). stream is the image's index
// in the run.
func Noise(values []float32, seed, stream, offset uint64) {
	bindings.PhiloxNormal(values, seed, stream, offset)
}

// Blend is the start of a run at time start, (1-start)·z_lq + start·z_1, in place of z1.
func Blend(z1, zLQ []float32, start float64) {
	p, q := float32(1-start), float32(start)
	for i, n := range z1 {
		z1[i] = p*zLQ[i] + q*n
	}
}

// Euler takes one step, z + (to-from)·v(z, from). z, zLQ [B,h,w,c] F32, scaled latents, h and w even; zLQ is nil for a plain base. The result has z's
// shape. A step to 0 from a network that predicts the sample is the prediction itself.
func (m *FluxIR) Euler(t *tensor.Tape, z, zLQ *tensor.Tensor, from, to float64, o SampleOptions) *tensor.Tensor {
	batch, h, w := z.Dim(0), z.Dim(1), z.Dim(2)
	all := func(v float64) []float32 { return slices.Repeat([]float32{float32(v)}, batch) }
	in := Input{Time: all(from), Guidance: all(float64(o.Guidance)), Rows: h / 2, Columns: w / 2, Lambda: o.Lambda, Prompt: o.Prompt, Pooled: o.Pooled}
	c := m.constants(t, in)
	one, change := t.Upload(all(1), bindings.F32, batch), t.Upload(all(to-from), bindings.F32, batch)
	direct := to == 0 && from >= minTime
	return o.Graphs.Run(t, fmt.Sprint(z.Shape(), zLQ != nil, direct, o.Lambda), []*tensor.Tensor{z, zLQ, o.Prompt, o.Pooled}, func() *tensor.Tensor {
		in.Z = t.Pack(z)
		if zLQ != nil {
			in.LQ = t.Pack(zLQ)
		}
		out := m.evaluate(t, in, c)
		if direct && out.Sample != nil {
			return t.Unpack(out.Sample, h, w)
		}
		return t.Axpby(z, t.Unpack(out.V, h, w), one, change, bindings.F32)
	})
}

// Sample runs all steps on whole latents from start [B,h,w,c], which Noise and Blend make, and returns z_0 in t's arena. Between
// steps latents are F32 and the steps' memory is free again. observe, if not nil, sees the latents after every step. ctx is
// checked between steps.
func (m *FluxIR) Sample(ctx context.Context, t *tensor.Tape, start, zLQ *tensor.Tensor, o SampleOptions, observe func(z *tensor.Tensor)) (*tensor.Tensor, error) {
	h, w := start.Dim(1), start.Dim(2)
	if h%2 != 0 || w%2 != 0 {
		return nil, fmt.Errorf("sampler: latent of %dx%d, want even sides", h, w)
	}
	times, err := o.Times(h / 2 * (w / 2))
	if err != nil {
		return nil, err
	}
	z := t.Copy(start)
	for i := range o.Steps {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t.Scope(func() []*tensor.Tensor {
			t.CopyTo(z, m.Euler(t, z, zLQ, times[i], times[i+1], o))
			return nil
		})
		if err := t.Err(); err != nil {
			return nil, err
		}
		if observe != nil {
			observe(z)
		}
	}
	return z, nil
}
