package train

import (
	"errors"
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
)

// Validation is a fixed set of crops of held-out photographs, each degraded in the three ways of data.EvalPresets, or of held-out pairs.
type Validation struct {
	size  int
	kinds []string       // of degradation: pair i is of kind i mod their number
	pairs [][2][]float32 // per preset and crop: clean, degraded; [size,size,3] in 0..1, 8 bits
}

// NewValidation takes the centre of each photograph, at most count of them, spread over the list.
func NewValidation(photos []data.Photo, size, count int) (*Validation, error) {
	v := &Validation{size: size, kinds: data.EvalPresets}
	for i := range min(count, len(photos)) {
		p := photos[i*len(photos)/min(count, len(photos))]
		if p.W < size || p.H < size {
			continue
		}
		clean := p.Image().Crop((p.W-size)/2/8*8, (p.H-size)/2/8*8, size, size)
		for _, preset := range data.EvalPresets {
			params, err := data.Draw(preset, 1, uint64(i), 0)
			if err != nil {
				return nil, err
			}
			degraded, err := params.Apply(clean)
			if err != nil {
				return nil, err
			}
			v.pairs = append(v.pairs, [2][]float32{clean.Pix, degraded.Pix})
		}
	}
	if len(v.pairs) == 0 {
		return nil, fmt.Errorf("validation: no photograph has %d×%d pixels", size, size)
	}
	return v, nil
}

var errTooSmall = errors.New("pictures too small")

// NewPairValidation takes the centre of each pair, at most count of them, spread over the list. Pairs that cannot be read are left out and
// given to skipped.
func NewPairValidation(pairs []data.Pair, size, count int, skipped func(error)) (*Validation, error) {
	v := &Validation{size: size, kinds: []string{"pairs"}}
	set, err := data.OpenPairs(pairs, size)
	if err != nil {
		return nil, fmt.Errorf("validation: %w: %w", errTooSmall, err)
	}
	for i := range min(count, len(pairs)) {
		hq, lq, err := set.Load([]int{i * len(pairs) / min(count, len(pairs))}, 0)
		if err != nil {
			continue
		}
		x, y := (hq.W-size)/2, (hq.H-size)/2
		v.pairs = append(v.pairs, [2][]float32{hq.Crop(x, y, size, size).Pix, lq.Crop(x, y, size, size).Pix})
	}
	found, _ := set.Skipped()
	for _, err := range found {
		skipped(err)
	}
	if len(v.pairs) == 0 {
		return nil, fmt.Errorf("validation: %w: no pair has %d×%d pixels", errTooSmall, size, size)
	}
	return v, nil
}

// Gains is the mean PSNR gain over the input in dB for each of v's kinds of degradation, restored in one step from noise with the averaged weights, and the first crop of
// each kind as degraded, restored and clean side by side. It is called inside Device.Do and leaves the weights as they were.
func (tr *Trainer) Gains(v *Validation) (gains []float64, samples []*data.Image, err error) {
	restore, err := tr.useAverages()
	if err != nil {
		return nil, nil, err
	}
	gains = make([]float64, len(v.kinds))
	for i, pair := range v.pairs {
		restored, err := tr.restore(pair[1], v.size, uint64(i))
		if err != nil {
			return nil, nil, err
		}
		gains[i%len(gains)] += (psnr(restored, pair[0]) - psnr(pair[1], pair[0])) * float64(len(gains)) / float64(len(v.pairs))
		if i < len(gains) {
			samples = append(samples, beside(v.size, pair[1], restored, pair[0]))
		}
	}
	return gains, samples, restore()
}

// beside sets square pictures in a row.
func beside(size int, pictures ...[]float32) *data.Image {
	m := data.New(size*len(pictures), size)
	for i, pix := range pictures {
		for y := range size {
			copy(m.Pix[3*(y*m.W+i*size):][:3*size], pix[3*y*size:])
		}
	}
	return m
}

// useAverages puts the averages in the place of the working weights and returns what puts those back.
func (tr *Trainer) useAverages() (restore func() error, err error) {
	var saved [][]float32
	for _, p := range tr.params {
		master, err := p.Master.Host()
		if err != nil {
			return nil, err
		}
		saved = append(saved, master)
		if p.EMA == nil {
			continue
		}
		average, err := p.EMA.Host()
		if err != nil {
			return nil, err
		}
		if err := p.Value.Set(average); err != nil {
			return nil, err
		}
	}
	return func() error {
		for i, p := range tr.params {
			if err := p.Value.Set(saved[i]); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// restore is one evaluation at t = 1.
func (tr *Trainer) restore(lq []float32, size int, stream uint64) ([]float32, error) {
	t := tr.tape
	t.Reset()
	images := mapped(lq, func(p float32) float32 { return 2*p - 1 })
	zLQ := encode(t, tr.vae, StepInput{Batch: 1, Height: size, Width: size}, images, nil)
	noise := make([]float32, zLQ.Len())
	model.Noise(noise, tr.Config.Seed, stream, 0)
	z := t.Upload(noise, bindings.F32, zLQ.Shape()...)
	guidance := float32(tr.net.Adapter.Config.Guidance)
	pixels := tr.vae.Decode(t, tr.net.Euler(t, z, zLQ, 1, 0, model.SampleOptions{Lambda: 1, Guidance: guidance}))
	if err := t.Err(); err != nil {
		return nil, err
	}
	values, err := pixels.Host()
	if err != nil {
		return nil, err
	}
	return mapped(values, byteOf), nil
}

// byteOf is a pixel in -1..1 as a file has it: clamped, rounded to 8 bits, in 0..1.
func byteOf(v float32) float32 {
	return float32(math.RoundToEven(float64(min(max(v/2+0.5, 0), 1))*255) / 255)
}

func psnr(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		d := float64(a[i] - b[i])
		sum += d * d
	}
	return -10 * math.Log10(max(sum/float64(len(a)), 1e-12))
}
