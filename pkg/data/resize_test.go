package data

import (
	"math"
	"testing"
)

// TestAreaFractions checks the area kernel where Pillow's box filter differs: fractional coverage.
func TestAreaFractions(t *testing.T) {
	row := func(v ...float32) *Image {
		m := New(len(v), 1)
		for i, x := range v {
			m.Pix[3*i], m.Pix[3*i+1], m.Pix[3*i+2] = x, x, x
		}
		return m
	}
	tests := []struct {
		src  *Image
		w    int
		want []float32
	}{
		{row(0, 3, 9), 2, []float32{(0 + 1.5) / 1.5, (1.5 + 9) / 1.5}},
		{row(1, 2, 3, 4, 5), 2, []float32{(1 + 2 + 1.5) / 2.5, (1.5 + 4 + 5) / 2.5}},
		{row(0, 6), 3, []float32{0, 3, 6}},
		{row(5), 4, []float32{5, 5, 5, 5}},
	}
	for _, tc := range tests {
		got := Resize(tc.src, tc.w, 1, Area)
		for i, want := range tc.want {
			if math.Abs(float64(got.Pix[3*i]-want)) > 1e-6 {
				t.Errorf("%d to %d pixels: value %d is %v, want %v", tc.src.W, tc.w, i, got.Pix[3*i], want)
			}
		}
	}
}

// TestResizeKeepsConstants: weights sum to 1 for every pair of sizes, up to the rounding of float32 sums.
func TestResizeKeepsConstants(t *testing.T) {
	for _, k := range []Kernel{Bicubic, Bilinear, Area, Lanczos3} {
		for _, s := range [][4]int{{1, 1, 5, 3}, {2, 3, 1, 1}, {17, 9, 4, 40}, {100, 1, 3, 7}, {3, 100, 99, 98}} {
			m := New(s[0], s[1])
			for i := range m.Pix {
				m.Pix[i] = 0.75
			}
			out := Resize(m, s[2], s[3], k)
			if out.W != s[2] || out.H != s[3] {
				t.Fatalf("%v %v: got %dx%d", k, s, out.W, out.H)
			}
			for i, v := range out.Pix {
				if math.Abs(float64(v)-0.75) > 1e-5 {
					t.Fatalf("%v %v: value %d is %v", k, s, i, v)
				}
			}
		}
	}
}

func TestResizeToOwnSizeCopies(t *testing.T) {
	m := numbered(3, 2)
	out := Resize(m, 3, 2, Bicubic)
	out.Pix[0] = 7
	if m.Pix[0] != 0 || out.Pix[5] != m.Pix[5] {
		t.Error("Resize to the same size is not a copy")
	}
}

func TestParseKernel(t *testing.T) {
	for _, k := range []Kernel{Bicubic, Bilinear, Area, Lanczos3} {
		if got, err := ParseKernel(k.String()); err != nil || got != k {
			t.Errorf("%v: got %v (%v)", k, got, err)
		}
	}
	if _, err := ParseKernel("nearest"); err == nil {
		t.Error("an unknown kernel was accepted")
	}
}

func BenchmarkResize(b *testing.B) {
	m := noisy(1024, 1024, 8, false, false)
	for b.Loop() {
		Resize(m, 512, 512, Bicubic)
	}
}

func BenchmarkMetrics(b *testing.B) {
	x, y := noisy(1024, 1024, 8, false, false), noisy(1024, 1024, 16, false, false)
	for _, m := range allMetrics {
		b.Run(m.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := m.f(x, y); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkColorFix(b *testing.B) {
	x, y := noisy(1024, 1024, 8, false, false), noisy(1024, 1024, 16, false, false)
	for b.Loop() {
		if _, err := ColorFix(ColorFixWavelet, x, y); err != nil {
			b.Fatal(err)
		}
	}
}
