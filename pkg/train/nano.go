package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// NanoLicence is written into the embedded model's files.
const NanoLicence = "Apache-2.0"

// NanoVAE is the embedded family's autoencoder: 2×2 pixels to 12 channels by an invertible linear map, no convolutions.
func NanoVAE() weights.VAEConfig {
	return weights.VAEConfig{
		Class: "AutoencoderKL", InChannels: 3, OutChannels: 3, LatentChannels: 12, LayersPerBlock: 1, NormNumGroups: 1, ActFn: "silu",
		ScalingFactor: 1, SpaceToDepthShortcut: 2,
	}
}

// NanoFlux is the embedded family's transformer: tokens of 4×4 pixels, predicting the sample as a residual of z_lq.
func NanoFlux() weights.FluxConfig {
	return weights.FluxConfig{
		Class: "FluxTransformer2DModel", PatchSize: 1, InChannels: 48, OutChannels: 48, NumLayers: 1, NumSingleLayers: 10,
		AttentionHeadDim: 64, NumAttentionHeads: 3, JointAttentionDim: 64, PooledDim: 64, AxesDimsRope: []int{16, 24, 24},
		Prediction: weights.PredictSample, LQSkip: true,
	}
}

// NanoAdapter is the embedded family's adapter.
func NanoAdapter() model.AdapterConfig {
	c := model.DefaultAdapterConfig()
	c.TextTokens, c.SEReduce = 8, 8
	return c
}

// NanoStages is the recipe of the embedded model after its autoencoder: the prior, the adapter on the frozen prior, then both together, which a small base
// needs (docs/nano.md).
func NanoStages() []Config {
	base, adapter, tune := DefaultConfig(StageBase), DefaultConfig(StageAdapter), DefaultConfig(StageTune)
	base.Steps, base.Loss.Pixel, base.Time.Shift = 1000, 0, true
	base.Loss.Crop, base.Loss.Margin = 0, 0
	for _, c := range []*Config{&adapter, &tune} {
		// Most items stand where restoring starts, at t = 1; the velocity's error grows with 1/t², so few have small t.
		c.Loss = Loss{Flow: 0.05, Pixel: 1, Gamma: 0, Distance: "l1"}
		c.Time.AtOne, c.Time.Shift, c.Dropout = 0.8, true, 0.05
	}
	adapter.Steps = 300
	tune.Steps, tune.CoolDown, tune.LR = 8500, 1800, 1e-3
	return []Config{base, adapter, tune}
}

// Stages are the configurations that s runs: its own, after those of the recipe before it where it names no weights to start from.
func (s Settings) Stages() []Config {
	if s.Model != "" || s.Warm != "" {
		return []Config{s.Config}
	}
	var list []Config
	for _, c := range NanoStages() {
		if c.Stage == s.Stage {
			break
		}
		c.Adapter = s.Adapter
		list = append(list, c)
	}
	return append(list, s.Config)
}

// patchTransform reads the fitted autoencoder of the run, or fits and stores it.
func (r *runner) patchTransform(photos []data.Photo) (*PatchTransform, error) {
	path := filepath.Join(r.s.Run, "vae.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if len(photos) == 0 {
			return nil, fmt.Errorf("%w: photos: the recipe's autoencoder is fitted to photographs, %s has pairs: name --model or --warm", ErrConfig, r.s.Photos)
		}
		r.log.Printf("vae: fitting the patch transform to %d photographs\n", len(photos))
		p, err := FitPatches(photos, NanoVAE().SpaceToDepthShortcut, 1<<21, 1)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		return p, os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		return nil, err
	}
	p := &PatchTransform{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// newNano makes the models of stage i of the recipe: first weights, then the averages that the earlier stages ended with.
func (r *runner) newNano(arena *tensor.Arena, i int) (*model.Bundle, error) {
	c := r.stages[i]
	config := NanoAdapter()
	config.Routing = c.Adapter
	b, err := model.NewBundle(arena, NanoFlux(), NanoVAE(), config, c.dtype(), bindings.F32)
	if err != nil {
		return nil, err
	}
	base, adapter := b.Net.Base, b.Net.Adapter
	if err := r.patches.Apply(b.VAE); err != nil {
		return nil, err
	}
	if err := InitBase(base, c.Seed); err != nil {
		return nil, err
	}
	for _, stage := range r.stages[:i] {
		ps := base.Params
		if stage.Stage == StageAdapter {
			ps = adapter.Params
		}
		if err := loadAverages(r.state(stage.Stage), ps); err != nil {
			return nil, err
		}
	}
	if c.Stage != StageTune {
		if err := InitAdapter(adapter, base, c.Seed); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// loadAverages reads the averaged weights of a finished stage's state.
func loadAverages(path string, ps *model.Params) error {
	f, err := weights.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range ps.List {
		t, err := f.Tensor(p.Name + "/ema")
		if err != nil {
			return err
		}
		values, err := weights.Float32s(t)
		if err != nil {
			return err
		}
		if err := p.Set(values); err != nil {
			return err
		}
	}
	return nil
}
