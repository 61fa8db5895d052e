package train

import (
	"context"
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
	tune.Steps, tune.EMA, tune.LR = 1000000, 0.9995, 1e-3
	return []Config{base, adapter, tune}
}

// NanoOptions are the user's choices for a run of the recipe.
type NanoOptions struct {
	Run     string // folder of states, the resolved configurations and the exported bundle
	Photos  string // folder of cmd/photos
	Threads int    // of the device, 0: all
	Workers int    // of the loader
	Warm    string // folder of a bundle whose weights the last stage starts from, in place of the stages before it; "" runs those
	Stages  []Config
	Log     *Logger
	// Export is called inside Device.Do whenever a state of the last stage has been saved, with the bundle as it stands.
	Export func(b *model.Bundle) error
}

// TrainNano runs the recipe: the autoencoder, then every stage from where it stopped. A cancelled ctx saves and returns nil with done false.
func TrainNano(ctx context.Context, o NanoOptions) (done bool, err error) {
	if err := os.MkdirAll(o.Run, 0o755); err != nil {
		return false, err
	}
	pack, err := data.OpenPack(filepath.Join(o.Photos, "train.fxp"))
	if err != nil {
		return false, err
	}
	defer pack.Close()
	d, err := bindings.OpenDevice("cpu", o.Threads)
	if err != nil {
		return false, err
	}
	defer d.Close()
	if o.Warm != "" {
		return o.runStage(ctx, d, pack, nil, len(o.Stages)-1)
	}
	vae, err := o.patchTransform(pack.Photos)
	if err != nil {
		return false, err
	}
	for i := range o.Stages {
		done, err := o.runStage(ctx, d, pack, vae, i)
		if err != nil || !done {
			return false, err
		}
	}
	return true, nil
}

// patchTransform reads the fitted autoencoder of the run, or fits and stores it.
func (o NanoOptions) patchTransform(photos []data.Photo) (*PatchTransform, error) {
	path := filepath.Join(o.Run, "vae.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		o.Log.Printf("vae: fitting the patch transform to %d photographs\n", len(photos))
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

func (o NanoOptions) state(stage string) string {
	return filepath.Join(o.Run, stage+".state.safetensors")
}

// runStage trains stage i until its last step; done is false where ctx ended first.
func (o NanoOptions) runStage(ctx context.Context, d *bindings.Device, pack *data.Pack, patches *PatchTransform, i int) (done bool, err error) {
	c := o.Stages[i]
	arena := tensor.NewArena(d)
	defer d.Do(func() error { arena.Free(); return nil })
	var tr *Trainer
	var b *model.Bundle
	err = d.Do(func() error {
		if b, err = o.initialise(arena, patches, c, i); err != nil {
			return err
		}
		if tr, err = NewTrainer(d, arena, b.Net, b.VAE, c); err != nil {
			return err
		}
		_, err = tr.Resume(o.state(c.Stage))
		return err
	})
	if err != nil || tr.Step >= c.Steps {
		return err == nil, err
	}
	defer d.Do(func() error { tr.Close(); return nil })
	o.Log.steps = c.Steps
	o.Log.Printf("%s: from step %d of %d\n", c.Stage, tr.Step, c.Steps)
	loader, err := data.NewPatchLoader(data.LoaderConfig{Photos: pack.Photos, Preset: c.Preset, Seed: c.Seed, Batch: c.Batch, Size: c.Size, Workers: o.Workers})
	if err != nil {
		return false, err
	}
	defer loader.Close()
	held, err := o.heldOut()
	if err != nil {
		return false, err
	}
	hooks := Hooks{
		Log: o.Log.Write,
		Save: func() error {
			if err := tr.Save(o.state(c.Stage)); err != nil {
				return err
			}
			if o.Export == nil || c.Stage != StageTune {
				return nil
			}
			b.Step, b.Licence = fmt.Sprint(tr.Step), NanoLicence
			return o.Export(b)
		},
	}
	if c.Stage != StageBase {
		hooks.Validate = func() error { return o.validate(tr, held) }
	}
	err = tr.Run(ctx, loader, hooks)
	return err == nil && tr.Step >= c.Steps, err
}

// heldOut are the validation crops.
func (o NanoOptions) heldOut() (*Validation, error) {
	pack, err := data.OpenPack(filepath.Join(o.Photos, "val.fxp"))
	if err != nil {
		return nil, err
	}
	defer pack.Close()
	return NewValidation(pack.Photos, 128, 12)
}

func (o NanoOptions) validate(tr *Trainer, held *Validation) error {
	gains, err := tr.Gains(held)
	if err != nil {
		return err
	}
	return o.Log.Write(Record{Stage: tr.Config.Stage, Step: tr.Step, Gains: gains})
}

// initialise makes the models of stage i: first weights, then the averages that the earlier stages ended with; or the weights of the bundle to start from.
func (o NanoOptions) initialise(arena *tensor.Arena, patches *PatchTransform, c Config, i int) (*model.Bundle, error) {
	if o.Warm != "" {
		return model.LoadBundle(arena, o.Warm, "", c.dtype(), bindings.F32)
	}
	base, err := model.NewFlux(arena, NanoFlux(), c.dtype())
	if err != nil {
		return nil, err
	}
	adapter, err := model.NewAdapter(arena, &base.Config, NanoAdapter(), c.dtype())
	if err != nil {
		return nil, err
	}
	vae, err := model.NewVAE(arena, NanoVAE(), bindings.F32)
	if err != nil {
		return nil, err
	}
	if err := patches.Apply(vae); err != nil {
		return nil, err
	}
	if err := InitBase(base, c.Seed); err != nil {
		return nil, err
	}
	for _, stage := range o.Stages[:i] {
		ps := base.Params
		if stage.Stage == StageAdapter {
			ps = adapter.Params
			if err := InitAdapter(adapter, base, c.Seed); err != nil {
				return nil, err
			}
		}
		if err := loadAverages(o.state(stage.Stage), ps); err != nil {
			return nil, err
		}
	}
	if i == 0 || c.Stage == StageAdapter {
		if err := InitAdapter(adapter, base, c.Seed); err != nil {
			return nil, err
		}
	}
	return &model.Bundle{Net: &model.FluxIR{Base: base, Adapter: adapter}, VAE: vae}, nil
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
