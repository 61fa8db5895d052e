package train

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// withVAE gives f an autoencoder of the embedded family whose weights are all value.
func withVAE(t *testing.T, value float32, f func(vae *model.VAE, d *bindings.Device) error) {
	t.Helper()
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		a := tensor.NewArena(d)
		defer a.Free()
		vae, err := model.NewVAE(a, NanoVAE(), bindings.F32)
		if err != nil {
			return err
		}
		for _, p := range vae.Params.List {
			if err := p.Set(slices.Repeat([]float32{value}, p.Value.Len())); err != nil {
				return err
			}
		}
		return f(vae, d)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A byte that is flipped anywhere in a file, a byte less and a byte more are found, and the file is made again as it was.
func TestLatentsFindEveryFlippedByte(t *testing.T) {
	dir := t.TempDir()
	pixels, shape := []float32{0.5, -1, 1, 0, 0.25, 1, 0, 0, 1, 1, -1, 0.125}, []int{1, 1, 1, 4}
	want := []float32{1, float32(math.Copysign(0, -1)), 3e-40, float32(math.Inf(-1))}
	withVAE(t, 1, func(vae *model.VAE, d *bindings.Device) error {
		c, err := OpenLatents(dir, 0, vae, d)
		if err != nil {
			return err
		}
		made := 0
		get := func() {
			t.Helper()
			got, err := c.moments(pixels, 2, 2, shape, func() ([]float32, error) { made++; return want, nil })
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
					t.Fatalf("got %v, want %v", got, want)
				}
			}
		}
		get()
		get()
		if made != 1 || c.Made != 1 || c.Read != 1 {
			t.Fatalf("encoded %d times (%v)", made, c)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*", "??", "*.lat"))
		if len(files) != 1 {
			t.Fatalf("files %v", files)
		}
		whole, err := os.ReadFile(files[0])
		if err != nil {
			return err
		}
		damaged := [][]byte{whole[:len(whole)-1], append(slices.Clone(whole), 0), {}}
		for i := range whole {
			b := slices.Clone(whole)
			b[i] ^= 1 << (i % 8)
			damaged = append(damaged, b)
		}
		for i, b := range damaged {
			if err := os.WriteFile(files[0], b, 0o644); err != nil {
				return err
			}
			get()
			if again, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(again, whole) || c.Damaged != int64(i+1) || made != i+2 {
				t.Fatalf("damage %d: file as before %v, encoded %d times (%v, %v)", i, bytes.Equal(again, whole), made, c, err)
			}
		}
		if c, err = OpenLatents(dir, 0, vae, d); err != nil || c.Bytes != int64(len(whole)) {
			t.Errorf("opened again: %v (%v), want %d bytes", c, err, len(whole))
		}
		return nil
	})
}

// Pixels, size, weights and dtype are all part of the key.
func TestLatentsKeys(t *testing.T) {
	dir := t.TempDir()
	shape := []int{1, 1, 1, 4}
	fill := func(vae *model.VAE, d *bindings.Device) error {
		c, err := OpenLatents(dir, 0, vae, d)
		if err != nil {
			return err
		}
		for _, pixels := range [][]float32{make([]float32, 12), append(make([]float32, 11), 1e-7)} {
			for _, side := range []int{1, 2} {
				if _, err := c.moments(pixels, side, 4/side, shape, func() ([]float32, error) { return make([]float32, 4), nil }); err != nil {
					return err
				}
			}
		}
		if c.Made != 4 || c.Read != 0 {
			t.Errorf("%v, want 4 encoded", c)
		}
		return nil
	}
	withVAE(t, 1, fill)
	withVAE(t, math.Nextafter32(1, 2), fill)
	withVAE(t, 1, func(vae *model.VAE, d *bindings.Device) error { vae.DType = bindings.BF16; return fill(vae, d) })
	list, err := CheckLatents(dir, false)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v (%v), want three encoders", list, err)
	}
	stranger := filepath.Join(dir, list[0].Encoder, "mine.txt")
	if err := os.WriteFile(stranger, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckLatents(dir, true); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); !slices.Equal(left, []string{stranger}) {
		t.Errorf("left after cleaning: %v", left)
	}
}

// Beyond the limit, and on a disk that cannot be written, nothing is added and values are right.
func TestLatentsLimit(t *testing.T) {
	dir := t.TempDir()
	shape, size := []int{1, 1, 1, 4}, int64(latentHeader+16+32)
	withVAE(t, 1, func(vae *model.VAE, d *bindings.Device) error {
		c, err := OpenLatents(dir, 2*size, vae, d)
		if err != nil {
			return err
		}
		for round := range 2 {
			for i := range 5 {
				got, err := c.moments([]float32{float32(i)}, 1, 1, shape, func() ([]float32, error) { return []float32{float32(i), 0, 0, 0}, nil })
				if err != nil || got[0] != float32(i) {
					t.Errorf("%v, %v", got, err)
				}
			}
			if c.Bytes != 2*size || c.Read != int64(2*round) {
				t.Errorf("round %d: %v, want two files", round, c)
			}
		}
		if c, err = OpenLatents(dir, 0, vae, d); err != nil || c.Bytes != 2*size {
			t.Errorf("opened again: %v (%v)", c, err)
		}
		key := c.key([]float32{9}, 1, 1)
		if err := os.WriteFile(filepath.Join(c.dir, string("0123456789abcdef"[key[0]>>4])+string("0123456789abcdef"[key[0]&15])), nil, 0o644); err != nil {
			t.Skip("the folder of the key is there already")
		}
		got, err := c.moments([]float32{9}, 1, 1, shape, func() ([]float32, error) { return []float32{9, 0, 0, 0}, nil })
		if err == nil && (got[0] != 9 || c.Err == nil) {
			t.Errorf("no folder for a file: %v, %v", got, c)
		}
		return nil
	})
}

// An image's latent does not depend on the batch it is in.
func TestEncodeIsPerImage(t *testing.T) {
	config := weights.VAEConfig{
		Class: "AutoencoderKL", InChannels: 3, OutChannels: 3, LatentChannels: 4, BlockOutChannels: []int{8, 8}, LayersPerBlock: 1,
		NormNumGroups: 2, MidAttention: true, ActFn: "silu", ScalingFactor: 0.5,
	}
	d, err := bindings.OpenDevice("cpu", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		a := tensor.NewArena(d)
		defer a.Free()
		vae, err := model.NewVAE(a, config, bindings.F32)
		if err != nil {
			return err
		}
		for i, p := range vae.Params.List {
			if err := p.Set(normals(p.Value.Len(), 0.3, 3, uint64(i))); err != nil {
				return err
			}
		}
		const side = 24
		images := normals(3*3*side*side, 0.5, 4, 0)
		tape := tensor.NewTape(d)
		defer tape.Free()
		all, err := encode(tape, vae, StepInput{Batch: 3, Height: side, Width: side}, images, nil).Host()
		if err != nil {
			return err
		}
		n := len(all) / 3
		for b := range 3 {
			one, err := encode(tape, vae, StepInput{Batch: 1, Height: side, Width: side}, images[b*3*side*side:][:3*side*side], nil).Host()
			if err != nil {
				return err
			}
			if !slices.Equal(one, all[b*n:][:n]) {
				t.Errorf("image %d: another latent alone", b)
			}
		}
		return tape.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
}
