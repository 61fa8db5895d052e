package network

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model/weights"
)

// fixture is testdata/NAME.json, which tools/golden/networks.py writes: pyiqa's scores with random weights.
type fixture struct {
	Boxes           [][4]int // x, y, width and height in 2x2 copies of castle.png
	Scores, Float32 []float64
	Tensors         []entry
}

type entry struct {
	name         string
	shape        []int
	centre, half float64
}

func (e *entry) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&e.name, &e.shape, &e.centre, &e.half})
}

func readFixture(t *testing.T, name string) fixture {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var f fixture
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// values are the tensor's: splitmix64, begun at FNV-1a of the name.
func (e *entry) values() []float32 {
	seed := uint64(0xCBF29CE484222325)
	for _, b := range []byte(e.name) {
		seed = (seed ^ uint64(b)) * 0x100000001B3
	}
	n := 1
	for _, d := range e.shape {
		n *= d
	}
	out := make([]float32, n)
	for i := range out {
		z := seed + uint64(i+1)*0x9E3779B97F4A7C15
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		z ^= z >> 31
		out[i] = float32(e.centre + e.half*(2*float64(z>>40)/(1<<24)-1))
	}
	return out
}

// write makes the file of weights in folder; edit may change or drop (shape nil) a tensor.
func (f *fixture) write(t *testing.T, k *Kind, folder string, edit func(e *entry)) {
	t.Helper()
	var entries []weights.Entry
	for _, e := range f.Tensors {
		if edit != nil {
			edit(&e)
		}
		if e.shape == nil && edit != nil {
			continue
		}
		entries = append(entries, weights.Float32Entry(e.name, weights.F32, e.shape, e.values()))
	}
	if err := weights.Write(k.Path(folder), entries, map[string]string{"network": k.Name}); err != nil {
		t.Fatal(err)
	}
}

func castle(t *testing.T) *data.Image {
	t.Helper()
	m, err := data.Load("../testdata/castle.png")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tiled is 2x2 copies.
func tiled(m *data.Image) *data.Image {
	out := data.New(2*m.W, 2*m.H)
	for i := range out.Pix {
		x, y := i/3%out.W%m.W, i/3/out.W%m.H
		out.Pix[i] = m.Pix[3*(y*m.W+x)+i%3]
	}
	return out
}

// degraded is tools/golden/networks.py's: the mean of 3x3 pixels, rounded down.
func degraded(m *data.Image) *data.Image {
	p := data.NewPhoto("", m)
	out := data.Photo{W: m.W, H: m.H, Pix: make([]byte, len(p.Pix))}
	for y := range m.H {
		for x := range m.W {
			for c := range 3 {
				sum := 0
				for dy := -1; dy <= 1; dy++ {
					for dx := -1; dx <= 1; dx++ {
						sum += int(p.Pix[3*(min(max(y+dy, 0), m.H-1)*m.W+min(max(x+dx, 0), m.W-1))+c])
					}
				}
				out.Pix[3*(y*m.W+x)+c] = byte(sum / 9)
			}
		}
	}
	return out.Image()
}

// TestAgainstPyiqa: the scores are as near to pyiqa's in float64 as twice pyiqa's own in float32, the worst picture's or 1e-6 of the score for luck.
func TestAgainstPyiqa(t *testing.T) {
	whole := tiled(castle(t))
	for i := range Kinds {
		k := &Kinds[i]
		t.Run(k.Name, func(t *testing.T) {
			f, dir := readFixture(t, k.Name), t.TempDir()
			f.write(t, k, dir, nil)
			n, err := k.Open(dir, "cpu", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			var naive float64
			for j, want := range f.Scores {
				naive = max(naive, math.Abs(f.Float32[j]-want), 1e-6*math.Abs(want))
			}
			worst := 0.
			for j, b := range f.Boxes {
				m := whole.Crop(b[0], b[1], b[2], b[3])
				img, reference := m, (*data.Image)(nil)
				if k.Reference {
					img, reference = degraded(m), m
				}
				got, err := n.Score(img, reference)
				if err != nil {
					t.Fatal(err)
				}
				worst = max(worst, math.Abs(got-f.Scores[j]))
				if !(math.Abs(got-f.Scores[j]) <= 2*naive) {
					t.Errorf("picture %d: %v, want %v within %.2g", j, got, f.Scores[j], 2*naive)
				}
			}
			t.Logf("largest difference %.2g, of pyiqa in float32 %.2g", worst, naive)
		})
	}
}

// TestBadFilesAndSameBits, on the smallest network.
func TestBadFilesAndSameBits(t *testing.T) {
	k, dir := &Kinds[0], t.TempDir()
	f := readFixture(t, k.Name)
	if _, err := k.Hash(dir); err == nil || !strings.Contains(err.Error(), "fetch torchvision's alexnet") || strings.Contains(err.Error(), "\n") {
		t.Errorf("no weights: %v", err)
	}
	for want, edit := range map[string]func(e *entry){
		"net.slice3.6.weight": func(e *entry) {
			if e.name == "net.slice3.6.weight" {
				e.shape = nil
			}
		},
		"lin2.model.1.weight has shape [1 384 2 1]": func(e *entry) {
			if e.name == "lin2.model.1.weight" {
				e.shape = []int{1, 384, 2, 1}
			}
		},
	} {
		f.write(t, k, dir, edit)
		if _, err := k.Open(dir, "cpu", 1); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), k.Path(dir)) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	if err := os.WriteFile(k.Path(dir), []byte("no weights"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(dir, "cpu", 1); err == nil || !strings.Contains(err.Error(), filepath.Base(k.Path(dir))) {
		t.Errorf("no safetensors file: %v", err)
	}

	f.write(t, k, dir, nil)
	m := castle(t).Crop(0, 0, 131, 77)
	bad := degraded(m)
	results := map[string]bool{}
	for _, threads := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(threads)
		n, err := k.Open(dir, "cpu", threads)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			v, err := n.Score(bad, m)
			results[fmt.Sprint(v, err)] = true
		}
		if v, err := n.Score(m, m); v != 0 || err != nil {
			t.Errorf("an image with itself: %v, %v", v, err)
		}
		if _, err := n.Score(data.New(30, 40), data.New(30, 40)); err == nil || !strings.Contains(err.Error(), "30x40 pixels is too small") {
			t.Errorf("a small image: %v", err)
		}
		if _, err := n.Score(data.New(40, 40), data.New(41, 40)); err == nil || !strings.Contains(err.Error(), "reference of 41x40") {
			t.Errorf("different sizes: %v", err)
		}
		n.Close()
	}
	runtime.GOMAXPROCS(runtime.NumCPU())
	if hash, err := k.Hash(dir); err != nil || len(hash) != 12 {
		t.Errorf("hash %q, %v", hash, err)
	}
	if len(results) != 1 {
		t.Errorf("scores differ: %v", results)
	}
}

// TestSmallest: every network takes images of its smallest side, flat ones too.
func TestSmallest(t *testing.T) {
	for i := range Kinds {
		k, dir := &Kinds[i], t.TempDir()
		f := readFixture(t, k.Name)
		f.write(t, k, dir, nil)
		n, err := k.Open(dir, "cpu", 0)
		if err != nil {
			t.Fatal(err)
		}
		m := data.New(k.Side+3, k.Side)
		if v, err := n.Score(m, m); err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			t.Errorf("%s of %dx%d flat pixels: %v, %v", k.Name, m.W, m.H, v, err)
		}
		n.Close()
	}
}
