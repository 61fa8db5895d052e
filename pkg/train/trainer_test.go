package train

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// tinyConfig is a stage that trains a tiny model on 16×16 crops.
func tinyConfig(stage string, steps int64) Config {
	c := DefaultConfig(stage)
	c.Steps, c.Batch, c.Size, c.LR, c.WarmUp, c.SaveEvery, c.LogEvery = steps, 2, 16, 2e-3, 2, 1000, 1
	c.Loss = Loss{Flow: 0.1, Pixel: 1, Gamma: 0, Distance: "l1"}
	c.Time.AtOne, c.Dropout = 0.5, 0.1
	return c
}

// tinyPhotos are two textured pictures.
func tinyPhotos() []data.Photo {
	var photos []data.Photo
	for k := range 2 {
		m := data.New(80, 64)
		for i := range m.Pix {
			x, y := float64(i/3%80), float64(i/240)
			m.Pix[i] = float32(0.5 + 0.4*math.Sin(x*0.3+float64(k))*math.Cos(y*0.2+float64(i%3)))
		}
		photos = append(photos, data.NewPhoto("p", m))
	}
	return photos
}

// tinyTrainer builds model and trainer for a stage; the caller's device runs it.
func tinyTrainer(a *tensor.Arena, d *bindings.Device, patches *PatchTransform, c Config) (*Trainer, error) {
	fc := NanoFlux()
	fc.NumSingleLayers, fc.AttentionHeadDim, fc.NumAttentionHeads, fc.AxesDimsRope = 1, 16, 1, []int{4, 6, 6}
	fc.JointAttentionDim, fc.PooledDim = 8, 8
	base, err := model.NewFlux(a, fc, bindings.F32)
	if err != nil {
		return nil, err
	}
	adapter, err := model.NewAdapter(a, &fc, NanoAdapter(), bindings.F32)
	if err != nil {
		return nil, err
	}
	vae, err := model.NewVAE(a, NanoVAE(), bindings.F32)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(patches.Apply(vae), InitBase(base, 1), InitAdapter(adapter, base, 1)); err != nil {
		return nil, err
	}
	return NewTrainer(d, a, &model.FluxIR{Base: base, Adapter: adapter}, vae, c)
}

// runTiny trains from the state file, if it is there, to c.Steps, saves, and returns the losses and the masters.
func runTiny(t *testing.T, state string, c Config, threads int) (losses []float64, masters []float32) {
	t.Helper()
	photos := tinyPhotos()
	patches, err := FitPatches(photos, 2, 4096, 1)
	if err != nil {
		t.Fatal(err)
	}
	d, err := bindings.OpenDevice("cpu", threads)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	a := tensor.NewArena(d)
	defer d.Do(func() error { a.Free(); return nil })
	var tr *Trainer
	err = d.Do(func() error {
		if tr, err = tinyTrainer(a, d, patches, c); err != nil {
			return err
		}
		_, err = tr.Resume(state)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Do(func() error { tr.Close(); return nil })
	loader, err := data.NewPatchLoader(data.LoaderConfig{Photos: photos, Preset: c.Preset, Seed: c.Seed, Batch: c.Batch, Size: c.Size, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer loader.Close()
	err = tr.Run(context.Background(), loader, Hooks{
		Log:  func(r Record) error { losses = append(losses, r.Loss); return nil },
		Save: func() error { return tr.Save(state) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return losses, hosts(t, tr, func(p *tensor.Param) *tensor.Tensor { return p.Master })
}

// hosts reads one tensor of every trained parameter, one after the other.
func hosts(t *testing.T, tr *Trainer, of func(p *tensor.Param) *tensor.Tensor) (all []float32) {
	t.Helper()
	err := tr.device.Do(func() error {
		for _, p := range tr.params {
			v, err := of(p).Host()
			if err != nil {
				return err
			}
			all = append(all, v...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestResumeIsExact(t *testing.T) {
	for _, stage := range []string{StageBase, StageAdapter, StageTune} {
		t.Run(stage, func(t *testing.T) {
			dir := t.TempDir()
			straight, want := runTiny(t, filepath.Join(dir, "a"), tinyConfig(stage, 8), 2)
			first, _ := runTiny(t, filepath.Join(dir, "b"), tinyConfig(stage, 4), 1)
			second, got := runTiny(t, filepath.Join(dir, "b"), tinyConfig(stage, 8), 2)
			if !slices.Equal(straight, append(first, second...)) {
				t.Errorf("losses of 8 steps %v, of 4 + 4 steps %v", straight, append(first, second...))
			}
			if !slices.Equal(want, got) {
				t.Error("weights differ after a resume")
			}
		})
	}
}

func TestTrainingLearns(t *testing.T) {
	losses, _ := runTiny(t, filepath.Join(t.TempDir(), "s"), tinyConfig(StageTune, 60), 0)
	mean := func(v []float64) (m float64) {
		for _, x := range v {
			m += x / float64(len(v))
		}
		return m
	}
	// At step 0 the output is the degraded input itself; sixty steps on two pictures must do better.
	if start, end := mean(losses[:15]), mean(losses[45:]); end > 0.9*start {
		t.Errorf("mean loss of the first 15 steps %.4f, of the last 15 %.4f", start, end)
	}
}

func TestFrozenBaseDoesNotMove(t *testing.T) {
	withDevice(t, func(d *bindings.Device) error {
		a := tensor.NewArena(d)
		defer a.Free()
		photos := tinyPhotos()
		patches, err := FitPatches(photos, 2, 4096, 1)
		if err != nil {
			return err
		}
		tr, err := tinyTrainer(a, d, patches, tinyConfig(StageAdapter, 2))
		if err != nil {
			return err
		}
		defer tr.Close()
		for _, p := range tr.net.Base.Params.List {
			if p.Trained() {
				t.Errorf("%s of the base is trained", p.Name)
			}
		}
		for _, p := range tr.net.Adapter.Params.List {
			if !p.Trained() {
				t.Errorf("%s of the adapter is not trained", p.Name)
			}
		}
		return nil
	})
}

func TestResumeRefuses(t *testing.T) {
	dir := t.TempDir()
	adapter := filepath.Join(dir, "adapter")
	runTiny(t, adapter, tinyConfig(StageAdapter, 1), 0)
	garbage := filepath.Join(dir, "garbage")
	if err := weights.Write(garbage, []weights.Entry{weights.Float32Entry("x", weights.F32, []int{1}, []float32{1})}, nil); err != nil {
		t.Fatal(err)
	}
	withDevice(t, func(d *bindings.Device) error {
		a := tensor.NewArena(d)
		defer a.Free()
		patches, err := FitPatches(tinyPhotos(), 2, 4096, 1)
		if err != nil {
			return err
		}
		tr, err := tinyTrainer(a, d, patches, tinyConfig(StageTune, 2))
		if err != nil {
			return err
		}
		defer tr.Close()
		if _, err := tr.Resume(adapter); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "adapter") {
			t.Errorf("state of another stage: %v", err)
		}
		if _, err := tr.Resume(garbage); !errors.Is(err, weights.ErrCorrupt) {
			t.Errorf("file that is no state: %v", err)
		}
		if changed, err := tr.Resume(filepath.Join(dir, "none")); changed != nil || err != nil {
			t.Errorf("missing state: %v, %v", changed, err)
		}
		return nil
	})
}

func TestConfigRefuses(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"stage": func(c *Config) { c.Stage = "nap" }, "steps": func(c *Config) { c.Steps = 0 }, "batch": func(c *Config) { c.Batch = -1 },
		"lr": func(c *Config) { c.LR = math.NaN() }, "schedule": func(c *Config) { c.Schedule = "" }, "dtype": func(c *Config) { c.DType = "f8" },
		"distance": func(c *Config) { c.Loss.Distance = "l7" }, "time": func(c *Config) { c.Time.AtOne = 2 }, "dropout": func(c *Config) { c.Dropout = 1.5 },
		"ema": func(c *Config) { c.EMA = 1 },
	} {
		c := DefaultConfig(StageBase)
		change(&c)
		if err := c.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, c := range NanoStages() {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestPatchTransformIsLossless(t *testing.T) {
	withDevice(t, func(d *bindings.Device) error {
		a, tp := tensor.NewArena(d), tensor.NewTape(d)
		defer a.Free()
		defer tp.Free()
		photos := tinyPhotos()
		patches, err := FitPatches(photos, 2, 1<<14, 1)
		if err != nil {
			return err
		}
		vae, err := model.NewVAE(a, NanoVAE(), bindings.F32)
		if err != nil {
			return err
		}
		if err := patches.Apply(vae); err != nil {
			return err
		}
		pixels := mapped(photos[0].Image().Pix, func(p float32) float32 { return 2*p - 1 })
		x := tp.Upload(pixels, bindings.F32, 1, photos[0].H, photos[0].W, 3)
		back := read(t, vae.Decode(tp, vae.Latent(tp, vae.Moments(tp, x), nil)))
		for i, v := range back {
			if math.Abs(float64(v-pixels[i])) > 1e-4 { // far below half a level of 8 bits, 4e-3
				t.Fatalf("pixel %d: %g came back as %g", i, pixels[i], v)
			}
		}
		return nil
	})
}
