package train

import (
	"context"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// What Measure looks at: the losses at these times, restorations with these numbers of Euler steps. The times are the middles of four equal parts of 0..1.
var (
	MeasureTimes = []float64{0.125, 0.375, 0.625, 0.875}
	MeasureSteps = []int{1, 4}
)

const (
	measureBatch = 15                 // pairs evaluated at once
	measureSeed  = 0x6d65617375726573 // of the noise, the same whatever the seed of a run
)

// Quality is the mean over pairs of PSNR in dB and SSIM, 8 bits.
type Quality struct {
	PSNR float64 `json:"psnr"`
	SSIM float64 `json:"ssim"`
}

func (q *Quality) add(a, b *data.Image, share float64) error {
	psnr, err := data.PSNR(a, b)
	if err != nil {
		return err
	}
	ssim, err := data.SSIM(a, b)
	q.PSNR, q.SSIM = q.PSNR+share*min(psnr, 120), q.SSIM+share*ssim
	return err
}

// Measures are what a model reaches on fixed pairs with fixed noise.
type Measures struct {
	Velocity []float64 `json:"velocity"` // L_fm at each of MeasureTimes
	Pixel    []float64 `json:"pixel"`    // mean |D(ẑ_0) − x_hq| there, pixels in -1..1
	Restored []Quality `json:"restored"` // with each of MeasureSteps
	Input    Quality   `json:"input"`    // of the degraded images
}

// Measure evaluates the averaged weights on v. It is called inside Device.Do and leaves the weights as they were.
func (tr *Trainer) Measure(ctx context.Context, v *Validation) (m Measures, err error) {
	restore, err := tr.useAverages()
	if err != nil {
		return m, err
	}
	m = Measures{Velocity: make([]float64, len(MeasureTimes)), Pixel: make([]float64, len(MeasureTimes)), Restored: make([]Quality, len(MeasureSteps))}
	for first := 0; first < len(v.pairs); first += measureBatch {
		n := min(measureBatch, len(v.pairs)-first)
		in := tr.measureInput(v, first, n)
		share := float64(n) / float64(len(v.pairs))
		for i, at := range MeasureTimes {
			if err := tr.measureLosses(in, at, share, &m.Velocity[i], &m.Pixel[i]); err != nil {
				return m, err
			}
		}
		for i, steps := range MeasureSteps {
			if err := tr.measureRestored(ctx, in, steps, v.pairs[first:first+n], 1/float64(len(v.pairs)), &m.Restored[i]); err != nil {
				return m, err
			}
		}
		for _, pair := range v.pairs[first : first+n] {
			if err := m.Input.add(v.image(pair[1]), v.image(pair[0]), 1/float64(len(v.pairs))); err != nil {
				return m, err
			}
		}
	}
	return m, restore()
}

// image is a picture of the set.
func (v *Validation) image(pix []float32) *data.Image {
	return &data.Image{W: v.size, H: v.size, Pix: pix}
}

// measureInput is a batch of n pairs from the first on, without times.
func (tr *Trainer) measureInput(v *Validation, first, n int) StepInput {
	f, channels := tr.vae.Config.Factor(), tr.vae.Config.LatentChannels
	side := v.size / f
	latent := side * side * channels
	in := StepInput{Batch: n, Height: v.size, Width: v.size, Lambda: 1, Z1: make([]float32, n*latent), Crop: Window{0, 0, side, side}}
	for i, pair := range v.pairs[first : first+n] {
		in.HQ = append(in.HQ, mapped(pair[0], func(p float32) float32 { return 2*p - 1 })...)
		in.LQ = append(in.LQ, mapped(pair[1], func(p float32) float32 { return 2*p - 1 })...)
		in.Guidance = append(in.Guidance, float32(tr.net.Adapter.Config.Guidance))
		model.Noise(in.Z1[i*latent:][:latent], measureSeed, uint64(first+i), 0)
	}
	return in
}

// measureLosses adds the losses of a batch at one time.
func (tr *Trainer) measureLosses(in StepInput, at, share float64, velocity, pixel *float64) error {
	tr.tape.Reset()
	in.Time = make([]float32, in.Batch)
	for i := range in.Time {
		in.Time[i] = float32(at)
	}
	out, err := Losses(tr.tape, tr.net, tr.vae, nil, in, Loss{Flow: 1, Pixel: 1, Distance: "l1"})
	if err != nil {
		return err
	}
	for _, x := range []struct {
		loss *tensor.Tensor
		sum  *float64
	}{{out.Flow, velocity}, {out.Pixel, pixel}} {
		value, err := x.loss.Host()
		if err != nil {
			return err
		}
		*x.sum += share * float64(value[0])
	}
	return nil
}

// measureRestored restores a batch from noise with so many steps and adds its quality.
func (tr *Trainer) measureRestored(ctx context.Context, in StepInput, steps int, pairs [][2][]float32, share float64, q *Quality) error {
	t := tr.tape
	t.Reset()
	zLQ := encode(t, tr.vae, in, in.LQ, nil)
	z1 := t.Upload(in.Z1, bindings.F32, zLQ.Shape()...)
	options := model.SampleOptions{Steps: steps, Start: 1, Shift: tr.Config.Time.Shift, Lambda: 1, Guidance: in.Guidance[0]}
	z, err := tr.net.Sample(ctx, t, z1, zLQ, options, nil)
	if err != nil {
		return err
	}
	values, err := tr.vae.Decode(t, z).Host()
	if err != nil {
		return err
	}
	n := 3 * in.Height * in.Width
	for i, pair := range pairs {
		restored := &data.Image{W: in.Width, H: in.Height, Pix: mapped(values[i*n:][:n], byteOf)}
		if err := q.add(restored, &data.Image{W: in.Width, H: in.Height, Pix: pair[0]}, share); err != nil {
			return err
		}
	}
	return nil
}
