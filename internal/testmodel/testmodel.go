// Package testmodel writes tiny models, of the embedded family and of FLUX.1's, for tests of whole restorations.
package testmodel

import (
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
	"github.com/fluxir/fluxir/pkg/train"
)

// Write makes a bundle of the embedded family in dir: random weights, one double and one single block of width 32, tokens of 4×4 pixels, an autoencoder that
// only moves pixels into channels. The output layer is output·N(0,1): with 0 the model returns its input exactly.
func Write(dir string, output float32) error {
	return write(dir, output, train.NanoVAE(), func(c *weights.FluxConfig) {
		c.Prediction, c.LQSkip = weights.PredictSample, true
	})
}

// WriteFlux makes a bundle like FLUX.1-dev's: velocities, guidance, a convolutional autoencoder of factor 8 without a shortcut. Its pictures are random.
func WriteFlux(dir string) error { return writeFlux(dir, func(*weights.FluxConfig) {}) }

// WriteDeepFlux is WriteFlux with 8 double and 8 single blocks of width 256: 107 MB in f32, far more than what else a small picture takes.
func WriteDeepFlux(dir string) error {
	return writeFlux(dir, func(c *weights.FluxConfig) {
		c.NumLayers, c.NumSingleLayers, c.AttentionHeadDim, c.NumAttentionHeads, c.AxesDimsRope = 8, 8, 64, 4, []int{16, 24, 24}
	})
}

func writeFlux(dir string, change func(c *weights.FluxConfig)) error {
	vae := weights.VAEConfig{
		Class: "AutoencoderKL", InChannels: 3, OutChannels: 3, LatentChannels: 16, BlockOutChannels: []int{4, 4, 8, 8}, LayersPerBlock: 1,
		NormNumGroups: 2, MidAttention: true, ActFn: "silu", ScalingFactor: 0.3611, ShiftFactor: 0.1159,
	}
	return write(dir, 0.02, vae, func(c *weights.FluxConfig) {
		c.Prediction, c.LQSkip, c.GuidanceEmbeds = weights.PredictVelocity, false, true
		change(c)
	})
}

func write(dir string, output float32, vae weights.VAEConfig, change func(*weights.FluxConfig)) error {
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Do(func() error {
		a := tensor.NewArena(d)
		defer a.Free()
		c := train.NanoFlux()
		c.NumLayers, c.NumSingleLayers, c.AttentionHeadDim, c.NumAttentionHeads = 1, 1, 16, 2
		c.JointAttentionDim, c.PooledDim, c.AxesDimsRope = 8, 8, []int{4, 6, 6}
		c.InChannels, c.OutChannels = 4*vae.LatentChannels, 4*vae.LatentChannels
		change(&c)
		b, err := bundle(a, c, vae, output)
		if err != nil {
			return err
		}
		return model.SaveBundle(dir, b)
	})
}

func bundle(a *tensor.Arena, c weights.FluxConfig, vaeConfig weights.VAEConfig, output float32) (*model.Bundle, error) {
	base, err := model.NewFlux(a, c, bindings.F32)
	if err != nil {
		return nil, err
	}
	config := train.NanoAdapter()
	config.TextTokens = 4
	adapter, err := model.NewAdapter(a, &base.Config, config, bindings.F32)
	if err != nil {
		return nil, err
	}
	vae, err := model.NewVAE(a, vaeConfig, bindings.F32)
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
	for _, p := range vae.Params.List {
		fill := randomise
		if strings.Contains(p.Name, "shortcut") && vaeConfig.SpaceToDepthShortcut > 0 {
			fill = identity
		}
		if err := fill(p, 0.1); err != nil {
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

// identity makes a matrix the identity, a bias 0.
func identity(p *tensor.Param, _ float32) error {
	values := make([]float32, p.Value.Len())
	if p.Value.Rank() == 2 {
		for i := range p.Value.Dim(0) {
			values[i*p.Value.Dim(0)+i] = 1
		}
	}
	return p.Set(values)
}
