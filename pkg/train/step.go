// Package train has the training of fluxir: the loss of one step, the loop around it, and the recipe of the embedded model.
package train

import (
	"errors"
	"fmt"
	"math"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Loss is how a step's error is measured (spec §4): Flow · L_fm + Pixel · L_px.
type Loss struct {
	Flow     float64 `json:"flow" toml:"flow"`         // weight of the flow-matching loss, 1
	Pixel    float64 `json:"pixel" toml:"pixel"`       // lambda_px, weight of the pixel loss, 0.1; 0 leaves the decoder out
	Gamma    float64 `json:"gamma" toml:"gamma"`       // items weigh (1−t)^gamma in the pixel loss, 1
	Distance string  `json:"distance" toml:"distance"` // l1, l2 or charbonnier
	Crop     int     `json:"crop" toml:"crop"`         // side of the decoded crop, latent pixels; 0 decodes everything
	Margin   int     `json:"margin" toml:"margin"`     // latent pixels decoded around the crop and cut off
}

// DefaultLoss has the specification's defaults.
func DefaultLoss() Loss {
	return Loss{Flow: 1, Pixel: 0.1, Gamma: 1, Distance: "l1", Crop: 16, Margin: 4}
}

// ParseDistance turns l1, l2 or charbonnier into the ABI's constant.
func ParseDistance(name string) (bindings.Distance, error) {
	switch name {
	case "l1":
		return bindings.DistanceL1, nil
	case "l2":
		return bindings.DistanceL2, nil
	case "charbonnier":
		return bindings.DistanceCharbonnier, nil
	}
	return 0, fmt.Errorf("loss: distance %q, want l1, l2 or charbonnier", name)
}

// Window is a rectangle of latent pixels.
type Window struct{ Y, X, Height, Width int }

// grow adds the margin on all sides, stopping at the border of h × w.
func (w Window) grow(margin, h, width int) Window {
	y, x := max(0, w.Y-margin), max(0, w.X-margin)
	return Window{y, x, min(h, w.Y+w.Height+margin) - y, min(width, w.X+w.Width+margin) - x}
}

// StepInput is what one step sees: B pairs of images and the random numbers.
type StepInput struct {
	Batch, Height, Width int       // of the images, pixels
	HQ, LQ               []float32 // [B,H,W,3] in [-1,1]; LQ nil: unconditional, and the model must have no adapter
	Eps, Z1              []float32 // [B,h,w,c]: noise of the encoder's sample (nil: the mean), noise of the flow
	Time, Guidance       []float32 // [B]: t, already shifted; g, read by bases with guidance_in only
	Keep                 []float32 // [B]: 0 drops the condition of an item (z_lq = 0), 1 keeps it; nil keeps all
	Crop                 Window    // decoded part, latent pixels, the same for the whole batch
	Lambda               float32
	Latents              *Latents          // of the encoder; nil: none
	Lap                  func(part string) // called when a part has been done (encode, forward, pixel; on the way back pixel); nil: not
}

func (in StepInput) lap(part string) {
	if in.Lap != nil {
		in.Lap(part)
	}
}

// StepOutput has a step's tensors: latents [B,h,w,c] F32 and losses [1] F32.
type StepOutput struct {
	Z0, ZLQ, ZT, V, Z0Hat, Decoded *tensor.Tensor
	Flow, Pixel, Total             *tensor.Tensor // Pixel is nil where its weight is 0
}

// Losses evaluates the model on one batch and returns the losses, ready for Backward where the tape records. The autoencoder is frozen. Prompt is the
// base's text for models without an adapter, [T,J] and [Y], else nil.
func Losses(t *tensor.Tape, m *model.FluxIR, vae *model.VAE, prompt *Prompt, in StepInput, loss Loss) (StepOutput, error) {
	distance, err := ParseDistance(loss.Distance)
	if err != nil {
		return StepOutput{}, err
	}
	var out StepOutput
	out.Z0 = encode(t, vae, in, in.HQ, in.Eps)
	if m.Adapter != nil {
		out.ZLQ = encode(t, vae, in, in.LQ, nil)
	}
	in.lap("encode")
	h, w, c := out.Z0.Dim(1), out.Z0.Dim(2), out.Z0.Dim(3)
	z1 := t.Upload(in.Z1, bindings.F32, in.Batch, h, w, c)
	one := t.Fill(t.New(bindings.F32, in.Batch), 1)
	time := t.Upload(in.Time, bindings.F32, in.Batch)
	data := t.Upload(mapped(in.Time, func(v float32) float32 { return 1 - v }), bindings.F32, in.Batch)
	out.ZT = t.Axpby(out.Z0, z1, data, time, bindings.F32)

	input := model.Input{Z: t.Pack(out.ZT), Time: in.Time, Guidance: in.Guidance, Rows: h / 2, Columns: w / 2, Lambda: in.Lambda}
	if m.Adapter != nil {
		if in.Keep != nil {
			out.ZLQ = t.Axpby(out.ZLQ, nil, t.Upload(in.Keep, bindings.F32, in.Batch), nil, bindings.F32)
		}
		input.LQ = t.Pack(out.ZLQ)
	} else {
		input.Prompt, input.Pooled = prompt.repeat(t, in.Batch)
	}
	prediction := m.Forward(t, input)

	out.Flow = t.FlowLoss(prediction.V, t.Pack(out.Z0), t.Pack(z1))
	out.V = t.Unpack(prediction.V, h, w)
	if prediction.Sample != nil {
		out.Z0Hat = t.Unpack(prediction.Sample, h, w)
	} else {
		minusTime := t.Upload(mapped(in.Time, func(v float32) float32 { return -v }), bindings.F32, in.Batch)
		out.Z0Hat = t.Axpby(out.ZT, out.V, one, minusTime, bindings.F32)
	}
	in.lap("forward")
	t.Mark(func() { in.lap("pixel") })
	weight := func(v float64) *tensor.Tensor { return t.Fill(t.New(bindings.F32, 1), float32(v)) }
	if loss.Pixel == 0 {
		out.Total = t.Axpby(out.Flow, nil, weight(loss.Flow), nil, bindings.F32)
		return out, t.Err()
	}
	out.Decoded = decodeCrop(t, vae, out.Z0Hat, in.Crop, loss.Margin)
	items := mapped(in.Time, func(v float32) float32 { return float32(math.Pow(1-float64(v), loss.Gamma)) })
	out.Pixel = t.PixelLoss(out.Decoded, targetCrop(t, vae, in), t.Upload(items, bindings.F32, in.Batch), distance)
	out.Total = t.Axpby(out.Flow, out.Pixel, weight(loss.Flow), weight(loss.Pixel), bindings.F32)
	in.lap("pixel")
	return out, t.Err()
}

// encode is the scaled latent of images, without a gradient: a sample with eps, else the mean. Images are encoded one by one, so that the bits of one do not
// depend on what else is in its batch, and only one image's activations are in memory.
func encode(t *tensor.Tape, vae *model.VAE, in StepInput, images, eps []float32) *tensor.Tensor {
	f, n := vae.Config.Factor(), 3*in.Height*in.Width
	h, w, c := in.Height/f, in.Width/f, vae.Config.LatentChannels
	z := t.New(bindings.F32, in.Batch, h, w, c)
	for b := range in.Batch {
		t.Scope(func() []*tensor.Tensor {
			var noise *tensor.Tensor
			if eps != nil {
				noise = t.Upload(eps[b*h*w*c:][:h*w*c], bindings.F32, 1, h, w, c)
			}
			t.CopyTo(z.Slice(0, b, b+1), vae.Latent(t, moments(t, vae, in, images[b*n:][:n]), noise))
			return nil
		})
	}
	return z
}

// moments are (mean, logvar) of one image, from the cache where there is one.
func moments(t *tensor.Tape, vae *model.VAE, in StepInput, image []float32) *tensor.Tensor {
	encoded := func() *tensor.Tensor { return vae.Moments(t, t.Upload(image, bindings.F32, 1, in.Height, in.Width, 3)) }
	if in.Latents == nil {
		return encoded()
	}
	f := vae.Config.Factor()
	shape := []int{1, in.Height / f, in.Width / f, 2 * vae.Config.LatentChannels}
	values, err := in.Latents.moments(image, in.Height, in.Width, shape, func() ([]float32, error) {
		values, err := encoded().Host()
		return values, errors.Join(t.Err(), err)
	})
	if err != nil {
		t.Note("latent cache", err)
		return t.New(vae.DType, shape...)
	}
	return t.Upload(values, vae.DType, shape...)
}

// decodeCrop decodes a window of a latent with a margin around it, and cuts the margin off.
func decodeCrop(t *tensor.Tape, vae *model.VAE, z *tensor.Tensor, w Window, margin int) *tensor.Tensor {
	f, r := vae.Config.Factor(), w.grow(margin, z.Dim(1), z.Dim(2))
	piece := z.Slice(1, r.Y, r.Y+r.Height).Slice(2, r.X, r.X+r.Width)
	image := vae.Decode(t, t.Copy(piece))
	y, x := f*(w.Y-r.Y), f*(w.X-r.X)
	return image.Slice(1, y, y+f*w.Height).Slice(2, x, x+f*w.Width)
}

// targetCrop is the same window of the clean images.
func targetCrop(t *tensor.Tape, vae *model.VAE, in StepInput) *tensor.Tensor {
	f, w := vae.Config.Factor(), in.Crop
	x := t.Upload(in.HQ, bindings.F32, in.Batch, in.Height, in.Width, 3)
	return x.Slice(1, f*w.Y, f*(w.Y+w.Height)).Slice(2, f*w.X, f*(w.X+w.Width))
}

// Prompt is a constant text for models without an adapter.
type Prompt struct{ Text, Pooled *tensor.Tensor } // [T,J], [Y]

func (p *Prompt) repeat(t *tensor.Tape, batch int) (text, pooled *tensor.Tensor) {
	return t.Repeat(p.Text, batch, bindings.F32), t.Repeat(p.Pooled, batch, bindings.F32)
}

func mapped(v []float32, f func(float32) float32) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = f(x)
	}
	return out
}
