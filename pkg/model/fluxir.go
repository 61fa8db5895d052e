package model

import (
	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// FluxIR is a base with its adapter: the velocity field that restores.
type FluxIR struct {
	Base    *Flux
	Adapter *Adapter // nil: the plain base, for which a caller gives a prompt
	// Recompute lets training keep only the blocks' inputs and compute their activations again on the way back.
	Recompute bool
}

// Input is one evaluation: B items of rows × columns tokens.
type Input struct {
	Z             *tensor.Tensor // z_t packed [B,N,in], F32
	LQ            *tensor.Tensor // z_lq packed [B,N,in], F32
	Time          []float32      // t [B]
	Guidance      []float32      // g [B]; read by bases with guidance_in only
	Rows, Columns int
	Lambda        float32        // strength of the broadcast
	Prompt        *tensor.Tensor // [B,T,J], the base's text where the adapter's configuration says prompt, or without an adapter
	Pooled        *tensor.Tensor // [B,Y]
}

// Output is the prediction at t, packed, F32.
type Output struct {
	V      *tensor.Tensor // velocity z_1 − z_0
	Sample *tensor.Tensor // ẑ_0, where the network predicts samples; else nil
	FImg   *tensor.Tensor // the adapter's features f_z, f_p; nil without an adapter
	FTxt   *tensor.Tensor
}

// minTime bounds the division that turns a predicted sample into a velocity (spec §5).
const minTime = 0.05

// constants are what an evaluation reads besides latents and text. They come from the host first, so that the ops after them have nothing to wait for and
// can be recorded as a graph.
type constants struct {
	pe          *tensor.Tensor // of Positions
	time        *tensor.Tensor // [B] F32
	guidance    *tensor.Tensor // [B] F32; nil where it is not read
	plus, minus *tensor.Tensor // ±1/max(t, minTime) [B] F32; nil where velocities are predicted
}

func (m *FluxIR) constants(t *tensor.Tape, in Input) (c constants) {
	batch := len(in.Time)
	nTxt := 0
	if m.Adapter != nil {
		nTxt = m.Adapter.Config.TextTokens
	} else {
		nTxt = in.Prompt.Dim(1)
	}
	c.pe = m.Base.Positions(t, nTxt, in.Rows, in.Columns)
	c.time = t.Upload(in.Time, bindings.F32, batch)
	if m.Base.Config.GuidanceEmbeds {
		c.guidance = t.Upload(in.Guidance, bindings.F32, batch)
	}
	if m.Base.Config.Prediction != weights.PredictVelocity {
		plus, minus := make([]float32, batch), make([]float32, batch)
		for i, v := range in.Time {
			plus[i] = 1 / max(v, minTime)
			minus[i] = -plus[i]
		}
		c.plus, c.minus = t.Upload(plus, bindings.F32, batch), t.Upload(minus, bindings.F32, batch)
	}
	return c
}

// Forward evaluates the model.
func (m *FluxIR) Forward(t *tensor.Tape, in Input) Output {
	return m.evaluate(t, in, m.constants(t, in))
}

// evaluate is Forward with the constants uploaded.
func (m *FluxIR) evaluate(t *tensor.Tape, in Input, c constants) Output {
	f, batch := m.Base, in.Z.Dim(0)
	img := f.imgIn.forward(t, t.Cast(in.Z, f.DType))
	var out Output
	var extra *Broadcast
	var txt, vec *tensor.Tensor
	if ad := m.Adapter; ad != nil {
		txt = f.txtIn.forward(t, t.Repeat(ad.thetaP, batch, f.DType))
		vec = f.vec(t, c.time, c.guidance, t.Repeat(ad.thetaY, batch, f.DType))
		out.FImg, out.FTxt = ad.features(t, img, t.Cast(in.LQ, f.DType), txt, vec, c.pe, m.Recompute)
		extra = ad.broadcast(t, out.FImg, out.FTxt, in.Lambda)
	}
	if m.Adapter == nil || m.Adapter.Config.BaseText == TextPrompt {
		txt = f.txtIn.forward(t, t.Cast(in.Prompt, f.DType))
		vec = f.vec(t, c.time, c.guidance, t.Cast(in.Pooled, f.DType))
	}
	y := f.Forward(t, img, txt, vec, c.pe, extra, m.Recompute)
	m.predict(t, &out, y, in, c)
	return out
}

// predict reads the network's output as a velocity or as a sample.
func (m *FluxIR) predict(t *tensor.Tape, out *Output, y *tensor.Tensor, in Input, c constants) {
	config := m.Base.Config
	if config.LQSkip && m.Adapter != nil {
		one := t.Fill(t.New(bindings.F32, y.Dim(0)), 1)
		y = t.Axpby(y, in.LQ, one, one, bindings.F32)
	}
	if config.Prediction == weights.PredictVelocity {
		out.V = t.Cast(y, bindings.F32)
		return
	}
	out.Sample = t.Cast(y, bindings.F32)
	out.V = t.Axpby(in.Z, out.Sample, c.plus, c.minus, bindings.F32)
}
