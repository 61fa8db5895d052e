// Package testmodel writes a tiny model of the embedded family for tests of whole restorations.
package testmodel

import (
	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
	"github.com/fluxir/fluxir/pkg/train"
)

// Write makes a bundle in dir: random weights, one double and one single block of width 32, tokens of 4×4 pixels, an autoencoder
// that only moves pixels into channels. The output layer is output·N(0,1): with 0 the model returns its input exactly.
func Write(dir string, output float32) error {
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Do(func() error {
		a := tensor.NewArena(d)
		defer a.Free()
		b, err := tiny(a, output)
		if err != nil {
			return err
		}
		return model.SaveBundle(dir, b)
	})
}

func tiny(a *tensor.Arena, output float32) (*model.Bundle, error) {
	c := train.NanoFlux()
	c.NumLayers, c.NumSingleLayers, c.AttentionHeadDim, c.NumAttentionHeads = 1, 1, 16, 2
	c.JointAttentionDim, c.PooledDim, c.AxesDimsRope = 8, 8, []int{4, 6, 6}
	c.InChannels, c.OutChannels, c.Prediction, c.LQSkip = 48, 48, weights.PredictSample, true
	base, err := model.NewFlux(a, c, bindings.F32)
	if err != nil {
		return nil, err
	}
	adapter, err := model.NewAdapter(a, &base.Config, train.NanoAdapter(), bindings.F32)
	if err != nil {
		return nil, err
	}
	vae, err := model.NewVAE(a, train.NanoVAE(), bindings.F32)
	if err != nil {
		return nil, err
	}
	if err := train.InitBase(base, 1); err != nil {
		return nil, err
	}
	if err := train.InitAdapter(adapter, base, 2); err != nil {
		return nil, err
	}
	if err := randomise(base.Params.Get("final_layer.linear.weight"), output); err != nil {
		return nil, err
	}
	for _, name := range []string{"encoder.shortcut", "decoder.shortcut"} {
		if err := identity(vae.Params.Get(name + ".weight")); err != nil {
			return nil, err
		}
		if err := randomise(vae.Params.Get(name+".bias"), 0); err != nil {
			return nil, err
		}
	}
	return &model.Bundle{Net: &model.FluxIR{Base: base, Adapter: adapter}, VAE: vae, Step: "0", Licence: train.NanoLicence}, nil
}

func randomise(p *tensor.Param, scale float32) error {
	values := make([]float32, p.Value.Len())
	bindings.PhiloxNormal(values, 7, 0, 0)
	for i := range values {
		values[i] *= scale
	}
	return p.Set(values)
}

func identity(p *tensor.Param) error {
	n := p.Value.Dim(0)
	values := make([]float32, n*n)
	for i := range n {
		values[i*n+i] = 1
	}
	return p.Set(values)
}
