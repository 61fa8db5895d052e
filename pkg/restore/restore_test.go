package restore

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/fluxir/fluxir/internal/testmodel"
	"github.com/fluxir/fluxir/pkg/data"
)

// Folders of a model that returns its input, of one that does not, and of one like FLUX.1.
var identityModel, randomModel, fluxModel string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fluxir-restore")
	if err == nil {
		identityModel, randomModel, fluxModel = filepath.Join(dir, "identity"), filepath.Join(dir, "random"), filepath.Join(dir, "flux")
		err = errors.Join(testmodel.Write(identityModel, 0), testmodel.Write(randomModel, 0.02), testmodel.WriteFlux(fluxModel))
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func open(t *testing.T, o Options) *Restorer {
	t.Helper()
	o.Device = "cpu"
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func restored(t *testing.T, o Options, img *data.Image) *data.Image {
	t.Helper()
	out, err := open(t, o).Restore(context.Background(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// gradient is a smooth picture with 8-bit values.
func gradient(w, h int) *data.Image {
	m := data.New(w, h)
	for y := range h {
		for x := range w {
			for c := range 3 {
				v := 0.5 + 0.45*math.Sin(float64(x)/37+float64(c))*math.Cos(float64(y)/53)
				m.Pix[3*(y*w+x)+c] = float32(math.Round(255*v) / 255)
			}
		}
	}
	return m
}

func constant(w, h int, v float32) *data.Image {
	m := data.New(w, h)
	for i := range m.Pix {
		m.Pix[i] = v
	}
	return m
}

func largest(t *testing.T, a, b *data.Image) float64 {
	t.Helper()
	if a.W != b.W || a.H != b.H {
		t.Fatalf("sizes %dx%d and %dx%d", a.W, a.H, b.W, b.H)
	}
	d := 0.0
	for i := range a.Pix {
		d = max(d, math.Abs(float64(a.Pix[i]-b.Pix[i])))
	}
	return d
}

// A model that returns its input restores every image to itself, whatever the size, the tiles and the steps: nothing is lost or
// seen at padding, tiles and blending.
func TestIdentity(t *testing.T) {
	const bound = 1e-6 // f32 rounding of a value in -1..1 through maps and blends; 8-bit rounding would forgive 2e-3
	for _, o := range []Options{{}, {Tile: 32}, {Tile: 52, Steps: 3}, {Tile: 64, Start: 0.5, Steps: 2, Memory: 1}} {
		o.Model = identityModel
		r := open(t, o)
		for _, size := range [][2]int{{1, 1}, {17, 31}, {3, 200}, {96, 96}, {97, 95}, {257, 131}, {700, 12}} {
			for name, img := range map[string]*data.Image{"gradient": gradient(size[0], size[1]), "constant": constant(size[0], size[1], 77./255)} {
				out, err := r.Restore(context.Background(), img, nil)
				if err != nil {
					t.Fatal(err)
				}
				if d := largest(t, img, out); d > bound {
					t.Errorf("%+v: %s of %v: differs by %g", o, name, size, d)
				}
			}
		}
	}
}

// Tiles see the same noise wherever they lie, and a batch's size changes nothing but the order of sums in a matrix product.
func TestBatchSize(t *testing.T) {
	img := gradient(200, 150)
	one := restored(t, Options{Model: randomModel, Tile: 48, Steps: 2, Memory: 1}, img)
	many := restored(t, Options{Model: randomModel, Tile: 48, Steps: 2}, img)
	if d := largest(t, one, many); d > 1e-5 {
		t.Errorf("one tile a batch and many differ by %g", d)
	}
	if d := largest(t, img, one); d < 1e-3 {
		t.Errorf("the random model changes its input by %g only: the test shows nothing", d)
	}
}

func TestDeterminism(t *testing.T) {
	img := gradient(130, 70)
	base := restored(t, Options{Model: randomModel, Seed: 5, Threads: 1}, img)
	for _, threads := range []int{1, 2} {
		again := restored(t, Options{Model: randomModel, Seed: 5, Threads: threads}, img)
		if d := largest(t, base, again); d != 0 {
			t.Errorf("1 thread and %d: differ by %g", threads, d)
		}
	}
	if d := largest(t, base, restored(t, Options{Model: randomModel, Seed: 6}, img)); d == 0 {
		t.Error("seeds 5 and 6 give the same picture")
	}
}

// What the model does not see comes out as it went in.
func TestKept(t *testing.T) {
	img := gradient(40, 30)
	img.Alpha = make([]float32, 40*30)
	for i := range img.Alpha {
		img.Alpha[i] = float32(i%256) / 255
	}
	img.Meta = data.Meta{BitDepth: 16, Gray: true, ICC: []byte("profile"), EXIF: []byte("exif"), DPI: 300}
	out := restored(t, Options{Model: randomModel}, img)
	for i, a := range out.Alpha {
		if a != img.Alpha[i] {
			t.Fatalf("alpha %d is %v, was %v", i, a, img.Alpha[i])
		}
	}
	if out.Meta.BitDepth != 16 || !out.Meta.Gray || !bytes.Equal(out.Meta.ICC, img.Meta.ICC) || !bytes.Equal(out.Meta.EXIF, img.Meta.EXIF) || out.Meta.DPI != 300 {
		t.Errorf("metadata %+v", out.Meta)
	}
	for scale, o := range map[int]Options{2: {Model: identityModel, Scale: 2}, 4: {Model: identityModel, Scale: 4}} {
		out := restored(t, o, img)
		if want := data.Resize(img, 40*scale, 30*scale, data.Bicubic); largest(t, want, out) > 1e-6 || len(out.Alpha) != len(want.Alpha) {
			t.Errorf("scale %d is not the enlarged input", scale)
		}
	}
}

// A folder as FLUX.1's, with the adapter elsewhere: velocities, several steps, a convolutional autoencoder whose tiles overlap,
// tokens of 16 pixels.
func TestFluxFamily(t *testing.T) {
	folder, adapter := t.TempDir(), filepath.Join(t.TempDir(), "adapter.safetensors")
	err := errors.Join(os.CopyFS(folder, os.DirFS(fluxModel)), os.Rename(filepath.Join(folder, "adapter.safetensors"), adapter))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Model: folder, Device: "cpu"}); !errors.Is(err, ErrModel) {
		t.Errorf("without an adapter: %v", err)
	}
	r := open(t, Options{Model: folder, Adapter: adapter, Steps: 2, Tile: 64, ColorFix: data.ColorFixNone})
	for _, size := range [][2]int{{1, 1}, {33, 20}, {1100, 70}} {
		whole := gradient(size[0], size[1])
		out, err := r.Restore(context.Background(), whole, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range out.Pix {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				t.Fatalf("%v: sample %d is %v", size, i, v)
			}
		}
		if d := largest(t, whole, out); d == 0 {
			t.Errorf("%v: came back unchanged", size)
		}
	}
	if s := (Options{}).settle(r.bundle); s.Steps != 20 || !s.Shift || s.tile != 64 || s.overlap != 8 || s.colorFix != data.ColorFixWavelet || s.Guidance != 3.5 {
		t.Errorf("defaults of FLUX.1-dev: %+v", s)
	}
}

// The fix is applied to the plain result, with the input as its reference.
func TestColorFix(t *testing.T) {
	img := gradient(64, 64)
	plain := restored(t, Options{Model: randomModel}, img)
	for _, kind := range []data.ColorFixKind{data.ColorFixWavelet, data.ColorFixAdaIN} {
		fixed := restored(t, Options{Model: randomModel, ColorFix: kind}, img)
		want, err := data.ColorFix(kind, plain, img)
		if err != nil {
			t.Fatal(err)
		}
		if d := largest(t, want, fixed); d != 0 {
			t.Errorf("%s: differs by %g from the fix of the plain result", kind, d)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	in, out := filepath.Join(t.TempDir(), "in.png"), filepath.Join(t.TempDir(), "out.png")
	if err := data.Save(in, gradient(400, 400), data.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	calls := 0
	_, err := open(t, Options{Model: randomModel, Memory: 1}).File(ctx, in, out, data.SaveOptions{}, func(done, total int) {
		calls++
		if done > total/2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || calls < 2 {
		t.Errorf("got %v after %d calls", err, calls)
	}
	if entries, _ := os.ReadDir(filepath.Dir(out)); len(entries) != 0 {
		t.Errorf("left %v", entries)
	}
}

// The views of an ensemble are turned back: a model that returns its input returns it, whatever the size.
func TestEnsemble(t *testing.T) {
	img := gradient(37, 51)
	for _, views := range []int{1, 2, 3, 8} {
		out := restored(t, Options{Model: identityModel, Ensemble: views, Tile: 32}, img)
		if d := largest(t, out, img); d > 1e-5 {
			t.Errorf("%d views: off by %g", views, d)
		}
	}
	one, three := restored(t, Options{Model: randomModel, Ensemble: 1}, img), restored(t, Options{Model: randomModel, Ensemble: 3}, img)
	if largest(t, one, three) == 0 {
		t.Error("three views give what one gives")
	}
}

// Progress counts up to its total.
func TestProgress(t *testing.T) {
	last, whole := 0, 0
	_, err := open(t, Options{Model: identityModel, Steps: 3, Ensemble: 2}).Restore(context.Background(), gradient(300, 200), func(done, total int) {
		if done <= last || (whole != 0 && total != whole) {
			t.Errorf("%d of %d after %d of %d", done, total, last, whole)
		}
		last, whole = done, total
	})
	if err != nil || last != whole || whole == 0 {
		t.Errorf("ended at %d of %d: %v", last, whole, err)
	}
}

// The device's memory does not grow with the image, once it is larger than a batch of tiles.
func TestMemoryFlat(t *testing.T) {
	peak := func(side int) int64 {
		r := open(t, Options{Model: identityModel, Memory: 8 << 20})
		if _, err := r.Restore(context.Background(), gradient(side, side), nil); err != nil {
			t.Fatal(err)
		}
		info, err := r.Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.Peak
	}
	small, large := peak(512), peak(2048)
	t.Logf("device peak: 512² %d MB, 2048² %d MB", small>>20, large>>20)
	if large > small+small/20 {
		t.Errorf("device peak grows from %d to %d bytes", small, large)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	negative := -1.0
	for name, c := range map[string]struct {
		o    Options
		kind error
	}{
		"scale":         {Options{Scale: 3}, ErrOption},
		"steps":         {Options{Steps: -1}, ErrOption},
		"start":         {Options{Start: math.NaN()}, ErrOption},
		"strength":      {Options{Strength: &negative}, ErrOption},
		"tile":          {Options{Tile: 8}, ErrOption},
		"color fix":     {Options{ColorFix: "sepia"}, ErrOption},
		"dtype":         {Options{DType: "f64"}, ErrOption},
		"device":        {Options{Device: "tpu", Model: identityModel}, ErrDevice},
		"no such model": {Options{Model: filepath.Join(dir, "none")}, ErrModel},
		"empty model":   {Options{Model: dir}, ErrModel},
		"adapter":       {Options{Model: identityModel, Adapter: filepath.Join(dir, "none.safetensors")}, ErrModel},
	} {
		if r, err := Open(c.o); !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v, want a %v", name, err, c.kind)
			if r != nil {
				r.Close()
			}
		}
	}
	if _, err := open(t, Options{Model: identityModel, MaxPixels: 1000, Scale: 2}).Restore(context.Background(), gradient(20, 20), nil); !errors.Is(err, data.ErrTooLarge) {
		t.Errorf("1600 pixels with a limit of 1000: %v", err)
	}
}
