package iqa

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/iqa/network"
)

const side, border = 384, 4 // of tools/golden/iqa.py

// reference is a row of testdata/*.json, which tools/golden/iqa.py writes.
type reference struct {
	File            string
	Plain, Border   map[string]float64
	Clean, Degraded map[string]float64
}

func load(t *testing.T, path string) *data.Image {
	t.Helper()
	m, err := data.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err = Setup{Crop: side}.prepare(m)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// degraded is tools/golden/iqa.py's: the mean of 3x3 pixels, rounded down.
func degraded(m *data.Image) *data.Image {
	p := data.NewPhoto("", m)
	out := data.Photo{W: m.W, H: m.H, Pix: make([]byte, len(p.Pix))}
	for y := range m.H {
		for x := range m.W {
			for c := range 3 {
				sum := 0
				for dy := -1; dy <= 1; dy++ {
					for dx := -1; dx <= 1; dx++ {
						sum += int(p.Pix[3*(repeated(y+dy, m.H)*m.W+repeated(x+dx, m.W))+c])
					}
				}
				out.Pix[3*(y*m.W+x)+c] = byte(sum / 9)
			}
		}
	}
	return out.Image()
}

// bounds are what a score may differ by. Load keeps v/255 in float32, so each sample is off by up to 2^-25, which no score amplifies by more than a
// factor of ten, PSNR in dB and BRISQUE's 0..100 by a hundred. The reference of NIQE halves the picture in float32 (2^-24 of 255 grey levels) and picks
// shapes from a grid of 0.001, where a tie may fall either way.
var bounds = map[string]float64{"psnr": 3e-6, "ssim": 3e-7, "ms-ssim": 3e-7, "niqe": 1e-3, "brisque": 1e-5}

// photoBounds replace two of them for photos.json: twice what was found there, not derived. A tie moves the score of a picture with large flat parts further (NIQE:
// one of 50 pictures by 1.2e-3), and three BRISQUE scores differ by up to 9.1e-4.
var photoBounds = map[string]float64{"niqe": 2.4e-3, "brisque": 1.9e-3}

func TestAgainstReferences(t *testing.T) {
	photos := "../../data/photos" // of make photos; the larger set is skipped without them
	if dir := os.Getenv("FLUXIR_PHOTOS"); dir != "" {
		photos = dir
	}
	sets := map[string][]string{"testdata/castle.json": {"testdata"}}
	if _, err := os.Stat(photos); err == nil {
		sets["testdata/photos.json"] = []string{filepath.Join(photos, "eval"), filepath.Join(photos, "val")}
	}
	worst := map[string]float64{}
	images := 0
	for set, folders := range sets {
		text, err := os.ReadFile(set)
		if errors.Is(err, fs.ErrNotExist) && set != "testdata/castle.json" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var rows []reference
		if err := json.Unmarshal(text, &rows); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			path := filepath.Join(folders[0], r.File)
			if _, err := os.Stat(path); err != nil {
				path = filepath.Join(folders[len(folders)-1], r.File)
			}
			images++
			clean := load(t, path)
			bad := degraded(clean)
			check := func(want map[string]float64, img, ref *data.Image, border int) {
				for key, w := range want {
					plain := key // those with a prefix are for the record
					for _, prefix := range []string{"pyiqa_", "opencv_", "published_"} {
						plain = strings.TrimPrefix(plain, prefix)
					}
					name, channel, _ := strings.Cut(plain, "_")
					parsed, err := Parse([]string{name}, Networks{})
					if err != nil {
						t.Fatal(err)
					}
					got, err := parsed[0].Score(img, ref, Setup{Channel: channel, Border: border})
					if err != nil {
						t.Errorf("%s: %s: %v", r.File, key, err)
						continue
					}
					worst[key] = max(worst[key], math.Abs(got-w))
					bound := bounds[name]
					if other, ok := photoBounds[name]; ok && set == "testdata/photos.json" {
						bound = other
					}
					if plain == key && math.Abs(got-w) > bound {
						t.Errorf("%s: %s border %d: got %v, want %v within %g", r.File, key, border, got, w, bound)
					}
				}
			}
			check(r.Plain, bad, clean, 0)
			check(r.Border, bad, clean, border)
			check(r.Clean, clean, nil, 0)
			check(r.Degraded, bad, nil, 0)
		}
	}
	if images == 0 {
		t.Fatalf("%d images", images)
	}
	t.Logf("%d images, largest differences %v", images, worst)
}

func TestSmallFlatAndSameBits(t *testing.T) {
	flat := data.New(300, 200)
	for _, m := range metrics {
		for _, img := range []*data.Image{data.New(1, 1), data.New(m.Side, m.Side), flat} {
			v, err := m.Score(img, img, Setup{})
			if err == nil && math.IsNaN(v) || err != nil && m.Reference && img.W >= m.Side {
				t.Errorf("%s of %dx%d flat pixels: %v, %v", m.Name, img.W, img.H, v, err)
			}
			if err == nil && img.W < m.Side {
				t.Errorf("%s takes %d pixels, want %d", m.Name, img.W, m.Side)
			}
		}
		if _, err := m.Score(flat, flat, Setup{Border: 100}); err == nil || !strings.Contains(err.Error(), "nothing is left") {
			t.Errorf("%s: a border that cuts everything: %v", m.Name, err)
		}
	}
	img := load(t, "../../testdata/photo/castle.jpg").Crop(0, 0, 251, 203)
	bad := degraded(img)
	for _, m := range metrics {
		runtime.GOMAXPROCS(1)
		want, err := m.Score(bad, img, Setup{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{2, 5} {
			runtime.GOMAXPROCS(n)
			if got, _ := m.Score(bad, img, Setup{}); got != want {
				t.Errorf("%s: %v with one processor, %v with %d", m.Name, want, got, n)
			}
		}
	}
	runtime.GOMAXPROCS(runtime.NumCPU())
}

func TestProtocol(t *testing.T) {
	m := metrics[0]
	a, b := m.Protocol(Setup{Border: 4, Channel: "y"}), m.Protocol(Setup{Border: 4})
	if a != "psnr crop=0 border=4 channel=y resize=none weights=none" {
		t.Errorf("protocol %q", a)
	}
	if Comparable(a, a) != nil || Comparable(a, b) == nil {
		t.Error("Comparable")
	}
	if p := metrics[5].Protocol(Setup{Channel: "y"}); !strings.HasPrefix(p, "niqe crop=0 border=0 channel=luma resize=none weights=") || strings.HasSuffix(p, "none") {
		t.Errorf("protocol %q", p)
	}
	for _, s := range []Setup{{Channel: "x"}, {Crop: -1}, {Border: -1}, {Resize: "nearest"}} {
		if s.Validate() == nil {
			t.Errorf("%+v is valid", s)
		}
	}
	small := data.New(30, 20)
	if _, err := m.Score(small, data.New(60, 40), Setup{}); err == nil || !strings.Contains(err.Error(), "30x20") {
		t.Errorf("mixed sizes: %v", err)
	}
	if v, err := m.Score(small, data.New(60, 40), Setup{Resize: "bicubic"}); err != nil || !math.IsInf(v, 1) {
		t.Errorf("resized: %v, %v", v, err)
	}
}

// TestParse: groups, and networks with and without weights.
func TestParse(t *testing.T) {
	n := Networks{Folder: t.TempDir(), Device: "cpu"}
	for want, names := range map[string][]string{
		"psnr ssim ms-ssim gmsd haarpsi niqe brisque": {"all"},
		"niqe brisque psnr":                           {"nr", "psnr", "niqe"},
		"psnr ssim ms-ssim gmsd haarpsi":              {"fr"},
	} {
		ms, err := Parse(names, n)
		var got []string
		for _, m := range ms {
			got = append(got, m.Name)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%v: %v, %v", names, got, err)
		}
	}
	if _, err := Parse([]string{"lpips"}, n); err == nil || !strings.Contains(err.Error(), "lpips-alex") {
		t.Errorf("an unknown metric: %v", err)
	}
	for _, k := range network.Kinds {
		_, err := Parse([]string{k.Name}, n)
		if err == nil || !strings.Contains(err.Error(), k.Path(n.Folder)) || !strings.Contains(err.Error(), "fetch ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s without weights: %v", k.Name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.Folder, "musiq.safetensors"), []byte("no weights"), 0o644); err != nil {
		t.Fatal(err)
	}
	ms, err := Parse([]string{"nr"}, n)
	if err != nil || len(ms) != 3 || ms[2].Name != "musiq" || len(n.Missing()) != len(network.Kinds)-1 {
		t.Fatalf("nr with a network: %v, %v", ms, err)
	}
	if p := ms[2].Protocol(Setup{Channel: "y"}); !strings.HasPrefix(p, "musiq crop=0 border=0 channel=rgb resize=none weights=") || strings.HasSuffix(p, "none") {
		t.Errorf("protocol %q", p)
	}
	if _, err := ms[2].Score(data.New(64, 64), nil, Setup{}); err == nil || !strings.Contains(err.Error(), "musiq.safetensors") {
		t.Errorf("a file without weights: %v", err)
	}
	Close(ms)
}

func BenchmarkScore(b *testing.B) {
	img, err := data.Load("../../testdata/photo/castle_clean.jpg")
	if err != nil {
		b.Fatal(err)
	}
	bad := degraded(img)
	for _, m := range metrics {
		b.Run(m.Name, func(b *testing.B) {
			for b.Loop() {
				if _, err := m.Score(bad, img, Setup{Channel: "y"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
