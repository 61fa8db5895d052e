package data

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// texturedPhoto is a photograph-like picture: smooth waves, a hard edge and a flat corner.
func texturedPhoto(w, h int, seed uint64) Photo {
	p := Photo{Name: fmt.Sprint("p", seed), W: w, H: h, Pix: make([]byte, 3*w*h)}
	rng := rand.New(rand.NewPCG(seed, 1))
	fx, fy := 0.05+0.2*rng.Float64(), 0.05+0.2*rng.Float64()
	for y := range h {
		for x := range w {
			v := 128 + 60*math.Sin(fx*float64(x))*math.Cos(fy*float64(y)) + 20*rng.Float64()
			if x < w/3 && y < h/3 {
				v = 200
			}
			for c := range 3 {
				p.Pix[3*(y*w+x)+c] = uint8(min(max(v+10*float64(c), 0), 255))
			}
		}
	}
	return p
}

func testPhotos() []Photo {
	return []Photo{texturedPhoto(150, 101, 1), texturedPhoto(64, 33, 2), texturedPhoto(20, 200, 3), texturedPhoto(333, 222, 4)}
}

func loadSteps(t *testing.T, cfg LoaderConfig, from int64, n int) []Batch {
	t.Helper()
	l, err := NewPatchLoader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if from > 0 {
		if err := l.SeekTo(from); err != nil {
			t.Fatal(err)
		}
	}
	var out []Batch
	for range n {
		b, err := l.Next()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Batch{b.Step, slices.Clone(b.HQ), slices.Clone(b.LQ)})
	}
	return out
}

func TestLoaderIsDeterministic(t *testing.T) {
	cfg := LoaderConfig{Photos: testPhotos(), Preset: PresetLight, Seed: 7, Batch: 3, Size: 32, GridJitter: 0.5}
	want := loadSteps(t, cfg, 0, 8)
	for _, workers := range []int{1, 2, 5} {
		cfg.Workers = workers
		for _, from := range []int64{0, 3} {
			for i, got := range loadSteps(t, cfg, from, 5) {
				w := want[int(from)+i]
				if got.Step != w.Step || !slices.Equal(got.HQ, w.HQ) || !slices.Equal(got.LQ, w.LQ) {
					t.Errorf("workers %d, from %d: batch %d differs", workers, from, i)
				}
			}
		}
	}
	cfg.Seed = 8
	if slices.Equal(loadSteps(t, cfg, 0, 1)[0].HQ, want[0].HQ) {
		t.Error("another seed gave the same batch")
	}
}

// The shards of a batch, one after the other, are the batch.
func TestLoaderShards(t *testing.T) {
	cfg := LoaderConfig{Photos: testPhotos(), Preset: PresetLight, Seed: 7, Batch: 6, Size: 32}
	want := loadSteps(t, cfg, 2, 2)
	var hq, lq [2][]float32
	cfg.Shards = 3
	for cfg.Shard = range 3 {
		for i, b := range loadSteps(t, cfg, 2, 2) {
			hq[i], lq[i] = append(hq[i], b.HQ...), append(lq[i], b.LQ...)
		}
	}
	for i, w := range want {
		if !slices.Equal(hq[i], w.HQ) || !slices.Equal(lq[i], w.LQ) {
			t.Errorf("batch %d: the shards together are not it", i)
		}
	}
}

// TestLoaderSeekMidway seeks back and forth in one loader, with batches made ahead.
func TestLoaderSeekMidway(t *testing.T) {
	cfg := LoaderConfig{Photos: testPhotos(), Preset: PresetJPEG, Seed: 1, Batch: 2, Size: 16, Workers: 3, Depth: 6}
	want := loadSteps(t, cfg, 0, 10)
	l, err := NewPatchLoader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{4, 0, 9, 2} {
		if err := l.SeekTo(at); err != nil {
			t.Fatal(err)
		}
		b, err := l.Next()
		if err != nil {
			t.Fatal(err)
		}
		if b.Step != at || l.Step() != at+1 || !slices.Equal(b.LQ, want[at].LQ) {
			t.Errorf("seek %d: wrong batch", at)
		}
	}
	l.Close()
	l.Close()
	if _, err := l.Next(); err == nil {
		t.Error("Next after Close gave no error")
	}
}

// TestLoaderWaits: batches that no one takes are not made without end.
func TestLoaderWaits(t *testing.T) {
	l, err := NewPatchLoader(LoaderConfig{Photos: testPhotos(), Preset: PresetJPEG, Batch: 2, Size: 16, Workers: 2, Depth: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Next(); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 300*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if n := l.work.pairs.Load(); n > 2*(3+1) {
			t.Fatalf("%d pairs are made, want three batches ahead of the one that is taken", n)
		}
	}
	if n, rate := l.work.pairs.Load(), l.Rate(); n != 8 || !(rate > 0) {
		t.Errorf("%d pairs after a while, rate %g", n, rate)
	}
}

// TestLoaderPairs checks that HQ is an exact piece of a photograph, in range, that LQ is near it but not equal, and that all eight
// orientations occur.
func TestLoaderPairs(t *testing.T) {
	const size = 16
	photo := texturedPhoto(40, 40, 9)
	pos := map[[3]byte]bool{}
	for i := 0; i < len(photo.Pix); i += 3 {
		pos[[3]byte(photo.Pix[i:])] = true
	}
	cfg := LoaderConfig{Photos: []Photo{photo}, Preset: PresetEvalNoise, Seed: 3, Batch: 8, Size: size, Half: -1}
	for _, b := range loadSteps(t, cfg, 0, 8) {
		var diff float64
		for i, v := range b.HQ {
			if v < -1 || v > 1 || b.LQ[i] < -1 || b.LQ[i] > 1 {
				t.Fatalf("value %g, %g out of -1..1", v, b.LQ[i])
			}
			diff += math.Pow(float64(v-b.LQ[i])*127.5, 2)
		}
		for i := 0; i < len(b.HQ); i += 3 {
			var c [3]byte
			for k := range c {
				c[k] = byte(math.Round(float64(b.HQ[i+k]+1) * 127.5))
			}
			if !pos[c] {
				t.Fatalf("pixel %v is not in the photograph", c)
			}
		}
		if rms := math.Sqrt(diff / float64(len(b.HQ))); rms < 5 || rms > 20 {
			t.Errorf("noise 15 + JPEG 60: rms difference %.1f", rms)
		}
	}
}

// TestCropTurns checks load against the definition: the eight results are the eight symmetries of the same square, margin included.
func TestCropTurns(t *testing.T) {
	photo := texturedPhoto(31, 29, 5)
	c := crop{&photo, 1, 9, 8, 10}
	var plain, got frame
	c.load(&plain, 20, 5, 5, 0)
	for turn := range 8 {
		c.load(&got, 20, 5, 5, turn)
		for y := range 20 {
			for x := range 20 {
				u, v := x, y
				if turn&1 != 0 {
					u = 19 - u
				}
				if turn&2 != 0 {
					v = 19 - v
				}
				if turn&4 != 0 {
					u, v = v, u
				}
				if got.pix[3*(y*20+x)] != plain.pix[3*(v*20+u)] {
					t.Fatalf("turn %d: wrong pixel at %d,%d", turn, x, y)
				}
			}
		}
	}
}

// TestCropShrinks compares crops at half and quarter size with the same place of a photograph that Resize shrank, and counts the factors.
func TestCropShrinks(t *testing.T) {
	photo := texturedPhoto(131, 90, 6) // 131 and 90 leave a rest that is cut off
	for _, shrink := range []int{2, 4} {
		w, h := 131/shrink, 90/shrink
		small := NewPhoto("", Resize(photo.Image().Crop(0, 0, w*shrink, h*shrink), w, h, Area))
		var got, want frame
		crop{&photo, shrink, 5, 3, 8}.load(&got, 16, 4, 4, 6)
		crop{&small, 1, 5, 3, 8}.load(&want, 16, 4, 4, 6)
		for i, v := range got.pix {
			if math.Abs(float64(v-want.pix[i])) > 1 { // means of halves round either way
				t.Fatalf("shrink %d: value %g, want %g", shrink, v, want.pix[i])
			}
		}
	}
	cfg := LoaderConfig{Photos: []Photo{texturedPhoto(140, 300, 1)}, Size: 16, KeepFlat: 1, Half: 0.4}
	worker := patchWorker{cfg: &cfg, cum: []float64{1}}
	c, rng := tally{t, map[string]int{}}, rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		c.n[fmt.Sprint(worker.crop(rng).shrink)]++
	}
	c.want("1", 5000, 0.6)
	c.want("2", 5000, 0.24)
	c.want("4", 5000, 0.16)
}

func TestLoaderAvoidsFlatCrops(t *testing.T) {
	flat := Photo{Name: "flat", W: 100, H: 100, Pix: make([]byte, 30000)}
	busy := texturedPhoto(100, 100, 2)
	for i := range busy.Pix {
		busy.Pix[i] = byte(i * 37)
	}
	cfg := LoaderConfig{Photos: []Photo{flat, busy}, Preset: PresetJPEG, Seed: 1, Batch: 200, Size: 8, Margin: 8, KeepFlat: 0.15}
	b := loadSteps(t, cfg, 0, 1)[0]
	n := 0
	for i := range 200 {
		if b.HQ[i*8*8*3] == -1 && b.HQ[i*8*8*3+5] == -1 {
			n++
		}
	}
	// A flat crop is taken with chance 0.15 a try: 0.5*0.15/(0.5*0.15+0.5) = 13 % of all.
	if n < 12 || n > 42 {
		t.Errorf("%d of 200 crops are flat, want about 26", n)
	}
}

func TestLoaderErrors(t *testing.T) {
	good := LoaderConfig{Photos: testPhotos(), Preset: PresetLight, Batch: 1, Size: 16}
	for name, change := range map[string]func(*LoaderConfig){
		"no batch": func(c *LoaderConfig) { c.Batch = 0 },
		"preset":   func(c *LoaderConfig) { c.Preset = "heavy" },
		"too big":  func(c *LoaderConfig) { c.Size = 1000 },
		"shards":   func(c *LoaderConfig) { c.Shards = 2 },
		"jitter":   func(c *LoaderConfig) { c.GridJitter = 1.5 },
	} {
		cfg := good
		change(&cfg)
		if l, err := NewPatchLoader(cfg); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func BenchmarkLightPair64(b *testing.B) { benchPair(b, PresetLight) }
func BenchmarkSeeSRPair64(b *testing.B) { benchPair(b, PresetSeeSR) }

func benchPair(b *testing.B, preset string) {
	cfg := LoaderConfig{Photos: testPhotos(), Preset: preset, Batch: 1, Size: 64, Margin: 16, KeepFlat: 0.15}
	cfg.Photos = cfg.Photos[3:]
	w := patchWorker{cfg: &cfg, cum: []float64{1}}
	batch := Batch{HQ: make([]float32, 3*64*64), LQ: make([]float32, 3*64*64)}
	b.ReportAllocs()
	for b.Loop() {
		batch.Step++
		if err := w.fill(&batch); err != nil {
			b.Fatal(err)
		}
	}
}
