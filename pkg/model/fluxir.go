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
	Time          *tensor.Tensor // t [B], F32
	Guidance      *tensor.Tensor // g [B], F32; read by bases with guidance_in only
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

// Forward evaluates the model.
func (m *FluxIR) Forward(t *tensor.Tape, in Input) Output {
	f, batch := m.Base, in.Z.Dim(0)
	img := f.imgIn.forward(t, t.Cast(in.Z, f.DType))
	var out Output
	var extra *Broadcast
	var txt, vec, pe *tensor.Tensor
	if ad := m.Adapter; ad != nil {
		pe = f.Positions(t, ad.Config.TextTokens, in.Rows, in.Columns)
		txt = f.txtIn.forward(t, t.Repeat(ad.thetaP, batch, f.DType))
		vec = f.vec(t, in.Time, in.Guidance, t.Repeat(ad.thetaY, batch, f.DType))
		out.FImg, out.FTxt = ad.features(t, img, t.Cast(in.LQ, f.DType), txt, vec, pe, m.Recompute)
		extra = ad.broadcast(t, out.FImg, out.FTxt, in.Lambda)
	}
	if m.Adapter == nil || m.Adapter.Config.BaseText == TextPrompt {
		if pe == nil {
			pe = f.Positions(t, in.Prompt.Dim(1), in.Rows, in.Columns)
		}
		txt = f.txtIn.forward(t, t.Cast(in.Prompt, f.DType))
		vec = f.vec(t, in.Time, in.Guidance, t.Cast(in.Pooled, f.DType))
	}
	y := f.Forward(t, img, txt, vec, pe, extra, m.Recompute)
	m.predict(t, &out, y, in)
	return out
}

// predict reads the network's output as a velocity or as a sample.
func (m *FluxIR) predict(t *tensor.Tape, out *Output, y *tensor.Tensor, in Input) {
	c := m.Base.Config
	if c.LQSkip && m.Adapter != nil {
		one := t.Fill(t.New(bindings.F32, y.Dim(0)), 1)
		y = t.Axpby(y, in.LQ, one, one, bindings.F32)
	}
	if c.Prediction == weights.PredictVelocity {
		out.V = t.Cast(y, bindings.F32)
		return
	}
	out.Sample = t.Cast(y, bindings.F32)
	times, err := in.Time.Host()
	t.Note("predict", err)
	p, q := make([]float32, len(times)), make([]float32, len(times))
	for i, v := range times {
		p[i] = 1 / max(v, minTime)
		q[i] = -p[i]
	}
	out.V = t.Axpby(in.Z, out.Sample, t.Upload(p, bindings.F32, len(p)), t.Upload(q, bindings.F32, len(q)), bindings.F32)
}
