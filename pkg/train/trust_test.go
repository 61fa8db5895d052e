package train

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// withTrainer runs f on a tiny trainer and a loader, outside Device.Do.
func withTrainer(t *testing.T, c Config, f func(tr *Trainer, loader *data.PatchLoader)) {
	t.Helper()
	photos := tinyPhotos()
	patches, err := FitPatches(photos, 2, 4096, 1)
	if err != nil {
		t.Fatal(err)
	}
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	a := tensor.NewArena(d)
	defer d.Do(func() error { a.Free(); return nil })
	var tr *Trainer
	if err := d.Do(func() error { tr, err = tinyTrainer(a, d, patches, c); return err }); err != nil {
		t.Fatal(err)
	}
	defer d.Do(func() error { tr.Close(); return nil })
	loader, err := data.NewPatchLoader(data.LoaderConfig{Photos: photos, Preset: c.Preset, Seed: c.Seed, Batch: c.Batch, Size: c.Size, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer loader.Close()
	f(tr, loader)
}

func TestGroupsLearnAndBaseDoesNot(t *testing.T) {
	c := tinyConfig(StageAdapter, 3)
	c.LRTheta = 0
	withTrainer(t, c, func(tr *Trainer, loader *data.PatchLoader) {
		hash := func() (h string) {
			if err := tr.device.Do(func() (err error) { h, err = tr.FrozenHash(); return err }); err != nil {
				t.Fatal(err)
			}
			return h
		}
		before := hash()
		var last Record
		if err := tr.Run(context.Background(), loader, Hooks{Log: func(r Record) error { last = r; return nil }}); err != nil {
			t.Fatal(err)
		}
		if hash() != before || !strings.HasPrefix(before, "f32:") {
			t.Errorf("frozen weights moved: %s, %s", before, hash())
		}
		if len(last.Groups) != 3 {
			t.Fatalf("groups %v", last.Groups)
		}
		squares := 0.0
		for name, g := range last.Groups {
			squares += g.GradNorm * g.GradNorm
			if learns := name != "theta"; (g.Change > 0) != learns || g.Change > 0.5 {
				t.Errorf("%s: change %g", name, g.Change)
			}
		}
		if math.Abs(math.Sqrt(squares)/last.GradNorm-1) > 1e-6 { // F32 sums of the parts and of the whole
			t.Errorf("gradient norm %g, of the groups together %g", last.GradNorm, math.Sqrt(squares))
		}
		for _, part := range []string{"data", "encode", "forward", "pixel", "backward", "optimizer"} {
			if !(last.Parts[part] > 0) {
				t.Errorf("no time for %s", part)
			}
		}
		if !(last.PeakShare > 0 && last.PeakShare <= 1) {
			t.Errorf("share of the peak %g", last.PeakShare)
		}
		if err := tr.device.Do(func() error {
			return tr.vae.Params.List[0].Value.Set(make([]float32, tr.vae.Params.List[0].Value.Len()))
		}); err != nil {
			t.Fatal(err)
		}
		if hash() == before {
			t.Error("the hash does not see a changed autoencoder")
		}
	})
}

// Two batches of two make the gradient of one batch of four, but for the order of the sums.
func TestAccumulate(t *testing.T) {
	gradients := func(batch, accumulate int) (all []float32) {
		c := tinyConfig(StageTune, 1)
		c.Batch, c.Accumulate, c.Dropout, c.Time = batch, accumulate, 0, TimeSampling{AtOne: 1}
		withTrainer(t, c, func(tr *Trainer, loader *data.PatchLoader) {
			if err := tr.Run(context.Background(), loader, Hooks{}); err != nil {
				t.Fatal(err)
			}
			all = hosts(t, tr, func(p *tensor.Param) *tensor.Tensor { return p.Grad })
		})
		return all
	}
	one, two := gradients(4, 1), gradients(2, 2)
	difference, size := 0.0, 0.0
	for i := range one {
		difference += math.Pow(float64(one[i]-two[i]), 2)
		size += math.Pow(float64(one[i]), 2)
	}
	if size == 0 || math.Sqrt(difference/size) > 1e-5 {
		t.Errorf("gradients differ by %g of their norm", math.Sqrt(difference/size))
	}
}

func TestNotFiniteIsNamed(t *testing.T) {
	nan := float32(math.NaN())
	poison := func(x *tensor.Tensor) error {
		values, err := x.Host()
		values[len(values)/2] = nan
		return errors.Join(err, x.Set(values))
	}
	for want, spoil := range map[string]func(tr *Trainer, b *data.Batch) error{
		"weight single_blocks.0.linear1.weight": func(tr *Trainer, _ *data.Batch) error {
			return poison(tr.net.Base.Params.Get("single_blocks.0.linear1.weight").Value)
		},
		"latent z_lq": func(_ *Trainer, b *data.Batch) error { b.LQ[0] = nan; return nil },
		"output of op": func(tr *Trainer, _ *data.Batch) error { // finite weights whose product is not
			p := tr.net.Base.Params.Get("final_layer.linear.bias").Value
			return p.Set(slices.Repeat([]float32{3e38}, p.Len()))
		},
	} {
		c := tinyConfig(StageAdapter, 3)
		withTrainer(t, c, func(tr *Trainer, loader *data.PatchLoader) {
			batch, err := loader.Next()
			if err != nil {
				t.Fatal(err)
			}
			var r Record
			err = tr.device.Do(func() error { return errors.Join(spoil(tr, batch), tr.begin(), tr.backward(batch, &r, true)) })
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "step 1") {
				t.Errorf("%v; want %q", err, want)
			}
		})
	}
	withTrainer(t, tinyConfig(StageAdapter, 3), func(tr *Trainer, _ *data.PatchLoader) {
		name := tr.params[3].Name
		var r Record
		err := tr.device.Do(func() error { return errors.Join(tr.begin(), poison(tr.params[3].Grad), tr.update(&r)) })
		if err == nil || !strings.Contains(err.Error(), "gradient of "+name) || tr.Step != 0 {
			t.Errorf("%v at step %d; want the gradient of %s", err, tr.Step, name)
		}
	})
}

// A flipped bit in a state is found and named; a state of another base is refused.
func TestStateIsVerified(t *testing.T) {
	state := filepath.Join(t.TempDir(), "s")
	runTiny(t, state, tinyConfig(StageAdapter, 1), 1)
	whole, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	f, err := weights.Open(state)
	if err != nil {
		t.Fatal(err)
	}
	tensor, err := f.Tensor("theta_p/master")
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(whole), string(tensor.Data))
	f.Close()
	flipped := slices.Clone(whole)
	flipped[at+5] ^= 0x10
	resume := func(content []byte, change func(tr *Trainer) error) (err error) {
		if err := os.WriteFile(state, content, 0o644); err != nil {
			t.Fatal(err)
		}
		withTrainer(t, tinyConfig(StageAdapter, 2), func(tr *Trainer, _ *data.PatchLoader) {
			err = tr.device.Do(func() error {
				if err := change(tr); err != nil {
					return err
				}
				_, err := tr.Resume(state)
				return err
			})
		})
		return err
	}
	same := func(*Trainer) error { return nil }
	if err := resume(whole, same); err != nil {
		t.Error(err)
	}
	if err := resume(flipped, same); !errors.Is(err, weights.ErrCorrupt) || !strings.Contains(err.Error(), "theta_p/master") {
		t.Errorf("flipped bit: %v", err)
	}
	if err := resume(whole[:len(whole)-7], same); err == nil {
		t.Error("a torn state was read")
	}
	other := func(tr *Trainer) error {
		return tr.net.Base.Params.List[1].Value.Set(slices.Repeat([]float32{3}, tr.net.Base.Params.List[1].Value.Len()))
	}
	if err := resume(whole, other); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "another base") {
		t.Errorf("another base: %v", err)
	}
}

// A disk that is full while a state is written leaves the state before it as it was.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a small tmpfs here: %v: %s", err, out)
	}
	defer exec.Command("umount", dir).Run()
	state := filepath.Join(dir, "s")
	withTrainer(t, tinyConfig(StageAdapter, 3), func(tr *Trainer, loader *data.PatchLoader) {
		save := func() error { return tr.device.Do(func() error { return tr.Save(state) }) }
		if err := save(); err != nil {
			t.Skipf("a state does not fit the disk of this test: %v", err)
		}
		before, err := os.ReadFile(state)
		if err != nil {
			t.Fatal(err)
		}
		filler := make([]byte, 1<<20-len(before)-64<<10)
		if err := os.WriteFile(filepath.Join(dir, "filler"), filler, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := tr.Run(context.Background(), loader, Hooks{}); err != nil {
			t.Fatal(err)
		}
		if err := save(); err == nil || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), state) {
			t.Errorf("saving on a full disk: %v", err)
		}
		after, err := os.ReadFile(state)
		if err != nil || !slices.Equal(before, after) {
			t.Errorf("the state before it has changed (%v)", err)
		}
		left, _ := filepath.Glob(filepath.Join(dir, ".*tmp"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}
