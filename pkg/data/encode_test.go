package data

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// noisy returns a seeded picture of 8- or 16-bit values.
func noisy(w, h, depth int, gray, alpha bool) *Image {
	r := rand.New(rand.NewPCG(uint64(w), uint64(h)))
	top := 1<<depth - 1
	m := New(w, h)
	m.Meta = Meta{BitDepth: depth, Gray: gray}
	for i := range m.Pix {
		m.Pix[i] = float32(r.IntN(top+1)) / float32(top)
		if gray && i%3 != 0 {
			m.Pix[i] = m.Pix[i-1]
		}
	}
	if alpha {
		m.Alpha = make([]float32, w*h)
		for i := range m.Alpha {
			m.Alpha[i] = float32(r.IntN(top)) / float32(top)
		}
	}
	return m
}

// fakeProfile is a profile of n bytes for a colour space; only what readers check is filled in.
func fakeProfile(space string, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	copy(p[16:], space)
	copy(p[36:], "acsp")
	return p
}

var testEXIF = []byte("MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00")

// TestLosslessRoundTrip saves and loads every kind of picture in the lossless formats and asks for the same values and metadata.
func TestLosslessRoundTrip(t *testing.T) {
	dir := t.TempDir()
	for _, ext := range []string{".png", ".tif", ".webp"} {
		for _, size := range [][2]int{{1, 1}, {1, 7}, {33, 18}} {
			for mask := range 8 {
				depth, gray, alpha := 8<<(mask&1), mask&2 != 0, mask&4 != 0
				if ext == ".webp" && (depth == 16 || gray) || ext == ".tif" && gray && alpha {
					continue // WebP is 8-bit colour; grey with alpha comes back from TIFF as colour with alpha
				}
				m := noisy(size[0], size[1], depth, gray, alpha)
				m.Meta.EXIF, m.Meta.DPI = testEXIF, 240
				m.Meta.ICC = fakeProfile("RGB ", 3001)
				if gray && !alpha {
					m.Meta.ICC = fakeProfile("GRAY", 3001)
				}
				path := filepath.Join(dir, fmt.Sprintf("m%d_%d%s", size[0], mask, ext))
				if err := Save(path, m, SaveOptions{}); err != nil {
					t.Fatal(err)
				}
				got, err := Load(path)
				if err != nil {
					t.Fatal(err)
				}
				if got.W != m.W || got.H != m.H || !slices.Equal(got.Pix, m.Pix) || !slices.Equal(got.Alpha, m.Alpha) {
					t.Errorf("%s: pixels changed", path)
				}
				if got.Meta.BitDepth != depth || !bytes.Equal(got.Meta.ICC, m.Meta.ICC) && !(gray && alpha) {
					t.Errorf("%s: depth %d, profile of %d bytes", path, got.Meta.BitDepth, len(got.Meta.ICC))
				}
				if got.Meta.Gray != (gray && !alpha) {
					t.Errorf("%s: grey is %v", path, got.Meta.Gray)
				}
				if ext != ".tif" && !bytes.Equal(got.Meta.EXIF, testEXIF) {
					t.Errorf("%s: EXIF %q", path, got.Meta.EXIF)
				}
				if ext != ".webp" && math.Abs(got.Meta.DPI-240) > 0.02 {
					t.Errorf("%s: %v dpi", path, got.Meta.DPI)
				}
			}
		}
	}
}

func TestJPEGRoundTrip(t *testing.T) {
	m, err := Load("testdata/profile.png")
	if err != nil {
		t.Fatal(err)
	}
	m = Resize(m, 64, 48, Bicubic)
	m.Meta.ICC, m.Meta.EXIF = fakeProfile("RGB ", 150_000), testEXIF // three segments
	var sizes []int
	for _, q := range []int{50, 0, 100} {
		var b bytes.Buffer
		if err := Encode(&b, m, SaveOptions{Format: FormatJPEG, Quality: q}); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, b.Len())
		got, err := Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Meta.ICC, m.Meta.ICC) || !bytes.Equal(got.Meta.EXIF, testEXIF) || got.Meta.DPI != 300 {
			t.Errorf("quality %d: profile of %d bytes, EXIF of %d, %v dpi", q, len(got.Meta.ICC), len(got.Meta.EXIF), got.Meta.DPI)
		}
		if psnr, err := PSNR(got, m); err != nil || psnr < 30 {
			t.Errorf("quality %d: %v dB (%v)", q, psnr, err)
		}
	}
	if !slices.IsSorted(sizes) || sizes[0] == sizes[1] || sizes[1] == sizes[2] {
		t.Errorf("sizes %v do not grow with quality 50, 95 (default), 100", sizes)
	}
}

func TestEncodeRules(t *testing.T) {
	again := func(m *Image, o SaveOptions) *Image {
		t.Helper()
		var b bytes.Buffer
		if err := Encode(&b, m, o); err != nil {
			t.Fatal(err)
		}
		got, err := Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	m := New(4, 1)
	copy(m.Pix, []float32{-1, 0.4 / 255, 0.6 / 255, 2.4 / 255, 2, float32(math.Inf(1)), float32(math.Inf(-1)), 254.6 / 255, 1, 0, 0, 0})
	want := []float32{0, 0, 1, 2, 255, 255, 0, 255, 255, 0, 0, 0}
	for i, v := range again(m, SaveOptions{}).Pix {
		if v*255 != want[i] {
			t.Errorf("sample %v became %v, want %v", m.Pix[i]*255, v*255, want[i])
		}
	}
	for v, want := range map[float32]uint16{0.5: 128, 0: 0, 1: 255, float32(math.Copysign(0, -1)): 0} {
		if got := quantise(v, 255); got != want {
			t.Errorf("quantise(%v) = %d, want %d", v, got, want)
		}
	}
	if got := quantise(0.5, 65535); got != 32768 {
		t.Errorf("0.5 became %d of 65535, want 32768", got)
	}
	if got := quantise(0.5, 1); got != 0 {
		t.Errorf("0.5 became %d of 1, want 0: ties go to even", got)
	}

	half := New(1, 1)
	half.Alpha = []float32{0.5}
	if got := again(half, SaveOptions{Format: FormatJPEG}); math.Abs(float64(got.Pix[0])-0.5) > 0.01 || got.Alpha != nil {
		t.Errorf("half transparent black over white became %v", got.Pix)
	}
	colour := noisy(9, 9, 8, false, false)
	colour.Meta.Gray = true
	if got := again(colour, SaveOptions{}); !got.Meta.Gray || math.Abs(float64(got.Pix[0]-luma(colour.Pix[:3]))) > 0.5/255+1e-6 {
		t.Errorf("a grey source was not written as luma")
	}
	if got := again(noisy(3, 3, 8, false, false), SaveOptions{BitDepth: 16}); got.Meta.BitDepth != 16 {
		t.Errorf("asked for 16 bit, got %d", got.Meta.BitDepth)
	}
	m = noisy(3, 3, 8, false, false)
	m.Meta.EXIF, m.Meta.ICC = testEXIF, fakeProfile("GRAY", 200)
	if got := again(m, SaveOptions{StripMeta: true}); got.Meta.EXIF != nil || got.Meta.ICC != nil {
		t.Errorf("EXIF of %d bytes after StripMeta, grey profile of %d bytes on colour", len(got.Meta.EXIF), len(got.Meta.ICC))
	}
	lossy := again(noisy(40, 40, 8, false, true), SaveOptions{Format: FormatWebP, Quality: 60})
	if slices.Equal(lossy.Pix, noisy(40, 40, 8, false, true).Pix) || lossy.Alpha == nil {
		t.Errorf("WebP of quality 60 is lossless or lost its alpha")
	}
}

func TestSaveErrors(t *testing.T) {
	dir := t.TempDir()
	nan := New(5, 4)
	nan.Pix[3*(5*2+1)] = float32(math.NaN())
	if err := os.Mkdir(filepath.Join(dir, "folder.png"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		m    *Image
		o    SaveOptions
		kind error
		want string
	}{
		{"a.bmp", New(1, 1), SaveOptions{}, ErrUnsupported, `extension ".bmp"`},
		{"a", New(1, 1), SaveOptions{}, ErrUnsupported, `extension ""`},
		{"a.png", nan, SaveOptions{}, nil, "pixel (1,2) is not a number"},
		{"a.png", &Image{W: 2, H: 2, Pix: make([]float32, 4)}, SaveOptions{}, nil, "4 samples"},
		{"a.png", New(1, 1), SaveOptions{BitDepth: 12}, ErrUnsupported, "bit depth 12"},
		{"a.jpg", New(1, 1), SaveOptions{Quality: 101}, ErrUnsupported, "quality 101"},
		{"a.webp", New(1, 1), SaveOptions{Quality: -1}, ErrUnsupported, "quality -1"},
		{"a.jpg", New(65536, 1), SaveOptions{}, ErrTooLarge, "65536x1"},
		{"a.webp", New(16384, 1), SaveOptions{}, ErrTooLarge, "16384x1"},
		{"absent/a.png", New(1, 1), SaveOptions{}, os.ErrNotExist, "no such file"},
		{"folder.png", New(1, 1), SaveOptions{}, nil, "exists"},
	}
	for _, tc := range tests {
		path := filepath.Join(dir, tc.name)
		err := Save(path, tc.m, tc.o)
		if err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), tc.want) || tc.kind != nil && !errors.Is(err, tc.kind) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("files left behind after failures: %v (%v)", left, err)
	}
}

func TestSaveReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.png")
	for _, w := range []int{3, 2} {
		if err := Save(path, New(w, 1), SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		if m, err := Load(path); err != nil || m.W != w {
			t.Fatalf("width %d: %v", w, err)
		}
	}
	if err := Save(path, New(1, 1), SaveOptions{BitDepth: 7}); err == nil {
		t.Error("bit depth 7 was accepted")
	}
	if m, err := Load(path); err != nil || m.W != 2 {
		t.Errorf("a failed Save touched the old file: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o044 == 0 {
		t.Errorf("mode %v does not follow the umask (%v)", info.Mode(), err)
	}
}
