package golden

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/model/weights"
)

// recorder is a testing.TB that keeps whether it failed.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// tiny writes a fixture with one result of each group. grad.w is [5, 2048] with rows 0, 2, 4 stored and its sum beside it.
func tiny(t *testing.T) *Fixture {
	dir := t.TempDir()
	rows := make([]float32, 3*2048)
	sum := make([]float32, 2048)
	for i := range rows {
		rows[i] = float32(i % 7)
	}
	for j := range sum { // all five rows: gradW(i, j) below
		for i := range 5 {
			sum[j] += gradW(i, j)
		}
	}
	for i := range 3 {
		for j := range 2048 {
			rows[i*2048+j] = gradW(2*i, j)
		}
	}
	f32 := func(name string, shape []int, v ...float32) weights.Entry {
		return weights.Float32Entry(name, weights.F32, shape, v)
	}
	err := weights.Write(filepath.Join(dir, "io.safetensors"), []weights.Entry{
		f32("in.z", []int{2}, 5, 6),
		f32("out.v", []int{4}, 1, -2, 3, 4),
		f32("out.v.f32", []int{4}, 1, -2, 3, 4),
		f32("out.zero", []int{2}, 0, 0),
		f32("grad.w", []int{3, 2048}, rows...),
		f32("gradsum.w", []int{2048}, sum...),
		f32("final.p", []int{4}, 1, 1, 1, 1),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := `{"kind": "tiny", "models": {"vae": "../vae_a/vae"}, "row_stride": 2, "io": "io.safetensors",
		"params": {"grid": [6, 10], "lambda": 0.7, "prompt": null},
		"n_err": {
			"out.v": {"scale": 4, "f32": [0.01, 0.002], "bf16": [0.1, 0.05]},
			"out.zero": {"scale": 0, "f32": [0, 0]},
			"grad.w": {"scale": 1, "f32": [0.01, 0.01]},
			"gradsum.w": {"scale": 1, "f32": [0.01, 0.01]},
			"final.p": {"scale": 1, "f32": [0.001, 0.01]}
		}}`
	if err := os.WriteFile(filepath.Join(dir, "fixture.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func gradW(row, col int) float32 { return float32((row*31+col)%5) / 8 }

func TestCheckRule(t *testing.T) {
	whole := func(change func(w []float32)) []float32 {
		w := make([]float32, 5*2048)
		for i := range w {
			w[i] = gradW(i/2048, i%2048)
		}
		change(w)
		return w
	}
	nan := float32(math.NaN())
	for _, c := range []struct {
		name, x   string
		got       []float32
		precision string
		miss      bool
	}{
		{"equal", "out.v", []float32{1, -2, 3, 4}, F32, false},
		{"max just inside", "out.v", []float32{1.00799, -2, 3, 4}, F32, false},           // rms 0.00400 <= 0.004004
		{"rms over, max inside", "out.v", []float32{1.01, -2, 3, 4}, F32, true},          // rms 0.005
		{"forward has c = 2", "out.v", []float32{1.0205, -2, 3, 4}, BF16, false},         // floor 4/256
		{"max over", "out.v", []float32{1.22, -2, 3, 4}, BF16, true},                     // 0.2 + 0.0156
		{"max inside", "out.v", []float32{1.21, -2, 3, 4}, BF16, false},                  // rms 0.105 <= 0.1156
		{"NaN", "out.v", []float32{1, -2, nan, 4}, BF16, true},                           //
		{"size", "out.v", []float32{1, -2, 3}, F32, true},                                //
		{"zero", "out.zero", []float32{0, 0}, F32, false},                                //
		{"not quite zero", "out.zero", []float32{0, 1e-30}, F32, true},                   //
		{"no bound for bf16", "out.zero", []float32{0, 1}, BF16, false},                  //
		{"final: one element may jump", "final.p", []float32{1, 1, 1.05, 1}, F32, false}, // rms 0.025 <= 0.03
		{"final: rms decides", "final.p", []float32{1, 1, 1.07, 1}, F32, true},
		{"rows", "grad.w", whole(func([]float32) {}), F32, false},
		{"error in a stored row", "grad.w", whole(func(w []float32) { w[2*2048+9] += 0.1 }), F32, true},
		{"error in a row left out shows in the sum", "grad.w", whole(func(w []float32) { w[3*2048+9] += 0.1 }), F32, true},
		{"a row too few", "grad.w", whole(func([]float32) {})[:4*2048], F32, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &recorder{TB: t}
			Check(r, tiny(t), c.x, c.got, c.precision)
			if miss := len(r.errors) > 0; miss != c.miss {
				t.Errorf("miss = %v, want %v: %v", miss, c.miss, r.errors)
			}
		})
	}
}

func TestAccessors(t *testing.T) {
	f := tiny(t)
	if got := Param[[]int](t, f, "grid"); len(got) != 2 || got[1] != 10 {
		t.Errorf("grid = %v", got)
	}
	if got := Param[float64](t, f, "lambda"); got != 0.7 {
		t.Errorf("lambda = %v", got)
	}
	if !f.HasParam("lambda") || f.HasParam("prompt") || f.HasParam("absent") {
		t.Error("HasParam: want lambda only")
	}
	if got := f.Model(t, "vae"); got != filepath.Join(filepath.Dir(f.Dir), "vae_a", "vae") {
		t.Errorf("Model = %s", got)
	}
	if got := f.Input(t, "z"); got.Data[1] != 6 || got.Shape[0] != 2 {
		t.Errorf("Input = %v", got)
	}
	if got := strings.Join(f.Tensors(t, "out."), " "); got != "out.v out.zero" {
		t.Errorf("Tensors(out.) = %q", got)
	}
	if !f.Has(t, "grad.w") || f.Has(t, "grad.x") {
		t.Error("Has: want grad.w only")
	}
	r := &recorder{TB: t}
	f.Exact(r, "out.v", []float32{1, -2, 3, 4, 99})
	if len(r.errors) != 0 {
		t.Errorf("Exact: %v", r.errors)
	}
	f.Exact(r, "out.v", []float32{1, -2, 3, 4.0000005})
	f.Exact(r, "out.zero", []float32{0, float32(math.Copysign(0, -1))})
	if len(r.errors) != 2 {
		t.Errorf("Exact missed a difference: %v", r.errors)
	}
}

// TestNaivePasses holds the stored results of the naive program against their own bounds: the rule as it was made.
func TestNaivePasses(t *testing.T) {
	kinds := []string{"flux", "gguf", "vae", "fluxir", "train", "sample", "text"}
	ForEach(t, kinds, func(t *testing.T, f *Fixture) {
		checked := 0
		for x := range f.NErr {
			for _, p := range []string{F32, BF16} {
				if f.Has(t, x+"."+p) {
					Check(t, f, x, f.Floats(t, x+"."+p).Data, p)
					checked++
				}
			}
		}
		if checked == 0 {
			t.Error("no stored result of N")
		}
		for _, r := range f.rows {
			if r.ratio() > 0.5 {
				t.Errorf("%s %s: N itself uses %.2f of its bound, the sets promise less than 0.5", r.name, r.precision, r.ratio())
			}
		}
	})
}

// TestImageRule checks that the stored 8-bit image passes, that a value off by two does not, and that off by one passes only near a half.
func TestImageRule(t *testing.T) {
	ForEach(t, []string{"sample"}, func(t *testing.T, f *Fixture) {
		_, want := f.Ints(t, "u8.image")
		got := make([]uint8, len(want))
		for i, w := range want {
			got[i] = uint8(w)
		}
		f.CheckImage(t, got)
		got[len(got)/2] ^= 2
		r := &recorder{TB: t}
		f.CheckImage(r, got)
		if len(r.errors) != 1 {
			t.Errorf("a value off by two passed: %v", r.errors)
		}
		exact := f.Floats(t, "out.image").Data
		i := slices.IndexFunc(exact, func(v float32) bool { // in the middle between two halves, and far from the ends
			level := 255 * (float64(v)/2 + 0.5)
			return level > 10 && level < 245 && math.Abs(level-math.Round(level)) < 0.1
		})
		got[len(got)/2] ^= 2
		got[i]++
		r.errors = nil
		f.CheckImage(r, got)
		if len(r.errors) != 1 {
			t.Errorf("a value off by one far from a half passed: %v", r.errors)
		}
	})
}
