package data

import (
	"encoding/json"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// reference is testdata/reference/reference.json, written by tools/golden/metrics.py.
type reference struct {
	Metrics []struct {
		Name    string
		PSNR    float64 `json:"psnr"`
		PSNRY   float64 `json:"psnr_y"`
		SSIM    float64 `json:"ssim"`
		SSIMY   float64 `json:"ssim_y"`
		GMSD    float64 `json:"gmsd"`
		HaarPSI float64 `json:"haarpsi"`
	}
	Plane struct {
		W, H int
		V    []float32
	}
	Resize []struct {
		Kernel string
		W, H   int
		Want   []float64
	}
	Colour struct {
		W, H              int
		Result, Reference []float32
		Wavelet, AdaIN    []float64
	}
}

func loadReference(t *testing.T) *reference {
	t.Helper()
	b, err := os.ReadFile("testdata/reference/reference.json")
	if err != nil {
		t.Fatal(err)
	}
	var r reference
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func mustLoad(t testing.TB, path string) *Image {
	t.Helper()
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var allMetrics = []struct {
	name  string
	f     func(a, b *Image) (float64, error)
	equal float64 // value of equal images
	least int     // smallest side
}{
	{"PSNR", PSNR, math.Inf(1), 1},
	{"PSNRY", PSNRY, math.Inf(1), 1},
	{"SSIM", SSIM, 1, 11},
	{"SSIMY", SSIMY, 1, 11},
	{"GMSD", GMSD, 0, 2},
	{"HaarPSI", HaarPSI, 1, 16},
}

// TestMetricsAgainstReferences: scikit-image and piq got the same 8-bit files in float64, Load rounds v/255 to float32 (6e-8).
func TestMetricsAgainstReferences(t *testing.T) {
	r := loadReference(t)
	if len(r.Metrics) != 4 {
		t.Fatalf("%d cases, want 4", len(r.Metrics))
	}
	for _, c := range r.Metrics {
		a, b := mustLoad(t, "testdata/reference/"+c.Name+"_a.png"), mustLoad(t, "testdata/reference/"+c.Name+"_b.png")
		for i, want := range []float64{c.PSNR, c.PSNRY, c.SSIM, c.SSIMY, c.GMSD, c.HaarPSI} {
			m := allMetrics[i]
			got, err := m.f(a, b)
			if err != nil || math.Abs(got-want) > 2e-6*max(1, want) {
				t.Errorf("%s of %s: got %.9f, want %.9f (%v)", m.name, c.Name, got, want, err)
			}
			swapped, err := m.f(b, a)
			if err != nil || math.Abs(swapped-got) > 1e-12*max(1, got) {
				t.Errorf("%s of %s is not symmetric: %v and %v (%v)", m.name, c.Name, got, swapped, err)
			}
		}
	}
}

func TestMetricsEdges(t *testing.T) {
	pictures := map[string]*Image{"noise": noisy(19, 17, 8, false, false), "black": New(16, 16), "white": New(18, 18)}
	for i := range pictures["white"].Pix {
		pictures["white"].Pix[i] = 1
	}
	for _, m := range allMetrics {
		for name, p := range pictures {
			if got, err := m.f(p, p.Clone()); err != nil || got != m.equal && math.Abs(got-m.equal) > 1e-9 {
				t.Errorf("%s of equal %s pictures: %v (%v)", m.name, name, got, err)
			}
		}
		small := New(m.least, m.least)
		if _, err := m.f(small, small); err != nil {
			t.Errorf("%s of %d pixels a side: %v", m.name, m.least, err)
		}
		if _, err := m.f(New(20, 20), New(20, 21)); err == nil || !strings.Contains(err.Error(), "20x20 and 20x21") {
			t.Errorf("%s of different sizes: %v", m.name, err)
		}
		if m.least > 1 {
			if _, err := m.f(New(m.least-1, 40), New(m.least-1, 40)); err == nil || !strings.Contains(err.Error(), "too small") {
				t.Errorf("%s of a picture too small: %v", m.name, err)
			}
		}
	}
}

// TestSameBitsOnAnyProcessorCount covers everything that is split over goroutines.
func TestSameBitsOnAnyProcessorCount(t *testing.T) {
	a, b := noisy(61, 47, 8, false, true), noisy(61, 47, 16, false, true)
	b.Pix[0] += 0.25
	run := func() (out []float64) {
		for _, m := range allMetrics {
			v, err := m.f(a, b)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		for _, kind := range []ColorFixKind{ColorFixWavelet, ColorFixAdaIN} {
			m, err := ColorFix(kind, a, b)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range m.Pix {
				out = append(out, float64(v))
			}
		}
		m := Resize(a, 40, 90, Lanczos3)
		for _, v := range append(m.Pix, m.Alpha...) {
			out = append(out, float64(v))
		}
		return out
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := run()
	for _, n := range []int{2, 3, 7} {
		runtime.GOMAXPROCS(n)
		if !slices.Equal(run(), want) {
			t.Errorf("%d processors give other bits than one", n)
		}
	}
}

// TestResizeAgainstPillow resamples one plane; the other channels are linear functions of it, which resampling must keep.
func TestResizeAgainstPillow(t *testing.T) {
	r := loadReference(t)
	if len(r.Resize) != 25 {
		t.Fatalf("%d cases, want 25", len(r.Resize))
	}
	src := New(r.Plane.W, r.Plane.H)
	src.Alpha = r.Plane.V
	for i, v := range r.Plane.V {
		src.Pix[3*i], src.Pix[3*i+1], src.Pix[3*i+2] = v, 1-v, v/2
	}
	for _, c := range r.Resize {
		k, err := ParseKernel(c.Kernel)
		if err != nil {
			t.Fatal(err)
		}
		got := Resize(src, c.W, c.H, k)
		for i, want := range c.Want {
			rgba := []float64{float64(got.Pix[3*i]), 1 - float64(got.Pix[3*i+1]), 2 * float64(got.Pix[3*i+2]), float64(got.Alpha[i])}
			for ch, v := range rgba {
				if math.Abs(v-want) > 1e-6 {
					t.Fatalf("%s to %dx%d, value %d channel %d: got %v, want %v", c.Kernel, c.W, c.H, i, ch, v, want)
				}
			}
		}
	}
}

func TestColorFixAgainstStableSR(t *testing.T) {
	c := loadReference(t).Colour
	result := &Image{W: c.W, H: c.H, Pix: c.Result, Meta: Meta{BitDepth: 16}}
	ref := &Image{W: c.W, H: c.H, Pix: c.Reference}
	for kind, want := range map[ColorFixKind][]float64{ColorFixWavelet: c.Wavelet, ColorFixAdaIN: c.AdaIN} {
		before := slices.Clone(result.Pix)
		got, err := ColorFix(kind, result, ref)
		if err != nil || len(want) != len(got.Pix) {
			t.Fatalf("%s: %d references (%v)", kind, len(want), err)
		}
		for i, v := range got.Pix {
			if math.Abs(float64(v)-want[i]) > 1e-6 {
				t.Fatalf("%s: value %d is %v, want %v", kind, i, v, want[i])
			}
		}
		if !slices.Equal(before, result.Pix) || got.Meta.BitDepth != 16 {
			t.Errorf("%s changed its input or lost the metadata", kind)
		}
	}
	if got, err := ColorFix(ColorFixNone, result, ref); err != nil || !slices.Equal(got.Pix, result.Pix) {
		t.Errorf("none is not the identity (%v)", err)
	}
}

func TestColorFixEdges(t *testing.T) {
	for _, kind := range []ColorFixKind{ColorFixWavelet, ColorFixAdaIN} {
		one, ref := New(1, 1), New(1, 1)
		copy(ref.Pix, []float32{0.2, 0.4, 0.6})
		got, err := ColorFix(kind, one, ref)
		if err != nil {
			t.Fatal(err)
		}
		for c, v := range got.Pix {
			if math.Abs(float64(v-ref.Pix[c])) > 1e-6 {
				t.Errorf("%s of one pixel: got %v, want %v", kind, got.Pix, ref.Pix)
			}
		}
		if _, err := ColorFix(kind, New(2, 2), New(2, 3)); err == nil {
			t.Errorf("%s of different sizes was accepted", kind)
		}
	}
	if _, err := ColorFix("sepia", New(1, 1), New(1, 1)); err == nil {
		t.Error("an unknown kind was accepted")
	}
	if _, err := ParseColorFix("sepia"); err == nil || !strings.Contains(err.Error(), "wavelet") {
		t.Errorf("ParseColorFix: %v", err)
	}
}
