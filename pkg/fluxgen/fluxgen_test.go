package fluxgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/iqa"
)

// painter generates pictures of soft waves that depend on the index alone.
type painter struct {
	side  int
	delay time.Duration
	fail  int // index that fails, 0: none
}

func (p painter) Generate(_ context.Context, first, n int) (out []*data.Image, err error) {
	for k := range n {
		i := first + k
		if p.fail > 0 && i >= p.fail {
			return nil, errors.New("out of paint")
		}
		time.Sleep(p.delay)
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		m := data.New(p.side, p.side)
		fx, fy := 0.2+rng.Float64(), 0.2+rng.Float64()
		for j := range m.Pix {
			x, y := float64(j/3%p.side), float64(j/3/p.side)
			m.Pix[j] = float32(0.5 + 0.3*math.Sin(fx*x+float64(j%3))*math.Cos(fy*y) + 0.05*rng.NormFloat64())
		}
		out = append(out, m)
	}
	return out, nil
}

var testSampling = Sampling{Seed: 3, Width: 32, Height: 32, Steps: 2, Guidance: 3.5, Prior: PriorBase, Batch: 2, DType: "f32", Model: "painter"}

const testCount = 9

// runAll does the three stages.
func runAll(dir string, g Generator) error {
	s, err := Open(dir, Shard{})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Configure(testSampling); err != nil {
		return err
	}
	if err := s.Generate(context.Background(), g, testSampling, testCount, nil); err != nil {
		return err
	}
	o := DefaultSelection()
	o.Keep = 0.7
	if err := s.Select(context.Background(), o, nil); err != nil {
		return err
	}
	return s.Degrade(context.Background(), Degradation{Preset: data.PresetLight, Seed: 5, Copies: 2}, nil)
}

// snapshot is every file of a set but the locks, by path.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), lockName) {
			return err
		}
		text, err := os.ReadFile(path)
		out[path[len(dir):]] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Fatalf("%s: files %v, want %v", what, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for path, text := range want {
		if got[path] != text {
			t.Errorf("%s: %s differs", what, path)
		}
	}
}

// TestMain is also the process that TestKilled kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("FLUXGEN_KILL_ME"); dir != "" {
		if err := runAll(dir, painter{side: 32, delay: 5 * time.Millisecond}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestKilled: a set whose runs are killed at any time, and go on, has the bytes of one that was never interrupted, on one processor and on several.
func TestKilled(t *testing.T) {
	whole := t.TempDir()
	procs := runtime.GOMAXPROCS(1)
	if err := runAll(whole, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	runtime.GOMAXPROCS(procs)
	want := snapshot(t, whole)
	dir := t.TempDir()
	killed := 0
	for wait := 20 * time.Millisecond; ; wait += 15 * time.Millisecond {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FLUXGEN_KILL_ME="+dir, "GOMAXPROCS=3")
		var log bytes.Buffer
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(wait, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "killed") {
			t.Fatalf("after %d kills: %v: %s", killed, err, &log)
		}
		killed++
		if killed > 200 {
			t.Fatal("never done")
		}
	}
	if killed == 0 {
		t.Error("never killed")
	}
	same(t, fmt.Sprintf("killed %d times", killed), snapshot(t, dir), want)
}

func TestTornLinesAndFailures(t *testing.T) {
	whole, dir := t.TempDir(), t.TempDir()
	if err := runAll(whole, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	if err := runAll(dir, painter{side: 32, fail: 5}); err == nil || err.Error() != "out of paint" {
		t.Fatalf("failing generator: %v", err)
	}
	manifest := filepath.Join(dir, manifestName)
	f, err := os.OpenFile(manifest, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"stage":"generate","index":4,"fi`)
	f.Close()
	os.Remove(filepath.Join(dir, "hq/000001.png")) // made again, its line is there
	if err := runAll(dir, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	same(t, "after a torn line", snapshot(t, dir), snapshot(t, whole))

	text, _ := os.ReadFile(manifest)
	for bad, want := range map[string]string{
		"{\n" + string(text):                                  "line 1",
		string(text) + `{"stage":"paint"}` + "\n":             `unknown stage "paint"`,
		string(text) + `{"stage":"select","index":-1}` + "\n": "index -1",
	} {
		if err := os.WriteFile(manifest, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir, Shard{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), manifest) {
			t.Errorf("want %q: %v", want, err)
			s.Close()
		}
	}
}

// TestFullDisk: a disk that fills up stops a set with one line that names the file; with room again the set ends in the bytes of any other.
func TestFullDisk(t *testing.T) {
	whole, disk := t.TempDir(), t.TempDir()
	if err := runAll(whole, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a small tmpfs here: %v: %s", err, out)
	}
	defer exec.Command("umount", disk).Run()
	dir, filler := filepath.Join(disk, "set"), filepath.Join(disk, "filler")
	failed := 0
	for free := 4 << 10; ; free += 8 << 10 { // a little more room each time
		os.Remove(filler)
		if free < 256<<10 {
			if err := os.WriteFile(filler, make([]byte, max(0, 256<<10-used(t, disk)-free)), 0o644); err != nil && !strings.Contains(err.Error(), "no space") {
				t.Fatal(err)
			}
		}
		err := runAll(dir, painter{side: 32})
		if err == nil {
			break
		}
		failed++
		if !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") || free > 256<<10 {
			t.Fatalf("%d bytes free: %v", free, err)
		}
	}
	if failed == 0 {
		t.Error("the disk was never full")
	}
	same(t, fmt.Sprintf("after a full disk, %d times", failed), snapshot(t, dir), snapshot(t, whole))
}

// used are the bytes that the files of a folder take, in pages.
func used(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			n += (int(info.Size()) + 4095) &^ 4095
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestOnePixel: pictures too small for any score are dropped for that reason, and the set goes on.
func TestOnePixel(t *testing.T) {
	dir := t.TempDir()
	if err := runAll(dir, painter{side: 1}); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range testCount {
		if d := s.selected[i]; d.Kept || !strings.HasPrefix(d.Why, "no score: BRISQUE: image of 1x1 pixels is too small") {
			t.Errorf("picture %d: %+v", i, d)
		}
	}
	if _, err := s.Report(); err != nil {
		t.Error(err)
	}
}

func TestLocksAndShards(t *testing.T) {
	whole, dir := t.TempDir(), t.TempDir()
	if err := runAll(whole, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	var shards []*Set
	for i := range 2 {
		s, err := Open(dir, Shard{i, 2})
		if err != nil {
			t.Fatal(err)
		}
		shards = append(shards, s)
	}
	for _, shard := range []Shard{{}, {1, 2}} {
		if _, err := Open(dir, shard); err == nil || !strings.Contains(err.Error(), "another process works on this set") {
			t.Errorf("a second process with %+v: %v", shard, err)
		}
	}
	for _, s := range shards {
		if err := s.Configure(testSampling); err != nil {
			t.Fatal(err)
		}
		if err := s.Generate(context.Background(), painter{side: 32}, testSampling, testCount, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Select(context.Background(), DefaultSelection(), nil); err == nil {
			t.Error("a shard selects")
		}
	}
	if got := []int{len(shards[0].generated), len(shards[1].generated)}; got[0] != 5 || got[1] != 4 {
		t.Errorf("shards made %v pictures", got)
	}
	for _, s := range shards {
		s.Close()
	}
	if err := runAll(dir, painter{side: 32, fail: 1}); err != nil {
		t.Fatalf("the shards' pictures are not taken: %v", err)
	}
	got, want := snapshot(t, dir), snapshot(t, whole)
	for path, text := range want {
		if strings.HasSuffix(path, ".png") && got[path] != text {
			t.Errorf("%s differs between shards and one process", path)
		}
	}
	other := testSampling
	other.Steps = 7
	s, err := Open(dir, Shard{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Configure(other); err == nil || !strings.Contains(err.Error(), "steps 2, asked for is 7") {
		t.Errorf("another configuration: %v", err)
	}
}

func TestDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	if err := runAll(dir, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := s.generated[0]
	if _, err := s.picture("../x.png", g.SHA256); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("a path out of the set: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, g.File), []byte("no picture"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.picture(g.File, g.SHA256); err == nil || !strings.Contains(err.Error(), g.File) {
		t.Errorf("a damaged picture: %v", err)
	}
	if _, err := ReadSet(t.TempDir()); err == nil {
		t.Error("an empty folder is a set")
	}
	s, err = Open(t.TempDir(), Shard{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Select(context.Background(), DefaultSelection(), nil); err == nil {
		t.Error("selects from nothing")
	}
	if err := s.Degrade(context.Background(), Degradation{Preset: "light"}, nil); err == nil {
		t.Error("degrades nothing")
	}
}

func TestDecide(t *testing.T) {
	s := &Set{scored: map[int]Scored{}}
	var indexes []int
	for i := range 12 {
		indexes = append(indexes, i)
		s.scored[i] = Scored{Index: i, Sharp: 10, Hash: fmt.Sprintf("%016x", uint64(0xff)<<(5*i)), Scores: map[string]float64{"niqe": float64(i), "brisque": float64(20 - i)}}
	}
	edit := func(i int, f func(*Scored)) {
		line := s.scored[i]
		f(&line)
		s.scored[i] = line
	}
	edit(0, func(l *Scored) { l.Flat = 0.9 })
	edit(1, func(l *Scored) { l.Sharp = 1 })
	edit(11, func(l *Scored) { l.Failed = map[string]string{"niqe": "too small"} })
	edit(5, func(l *Scored) { l.Hash = fmt.Sprintf("%016x", uint64(0xff)<<10^3) }) // two bits from picture 2
	o := DefaultSelection()
	o.Keep = 0.75 // of the eight that are left, two go by each score
	why := s.decide(indexes, o)
	for i, want := range map[int]string{0: "flat", 1: "blurred", 11: "no score: too small", 5: "duplicate of 2", 10: "niqe 10", 9: "niqe 9", 2: "brisque 18", 3: "brisque 17", 4: "", 6: "", 7: "", 8: ""} {
		if !strings.HasPrefix(why[i], want) || want == "" && why[i] != "" {
			t.Errorf("picture %d: %q, want %q", i, why[i], want)
		}
	}
	o.Combine = CombineRank
	edit(4, func(l *Scored) { l.Scores = map[string]float64{"niqe": 100, "brisque": 100} })
	if why = s.decide(indexes, o); why[4] != "mean rank: place 1 of the worst 2 of 8" {
		t.Errorf("by rank: %q", why[4])
	}
	dropped := 0
	for _, w := range why {
		if strings.HasPrefix(w, "mean rank") {
			dropped++
		}
	}
	if dropped != 2 {
		t.Errorf("%d dropped by rank, want 2", dropped)
	}
	for _, bad := range []Selection{{Combine: "x", Keep: 1}, {Combine: "rank"}, {Combine: "rank", Keep: 1, Metrics: []string{"psnr"}}, {Combine: "rank", Keep: 1, MinSharp: math.NaN()}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

func TestLook(t *testing.T) {
	images, _ := painter{side: 64}.Generate(context.Background(), 0, 2)
	a, b := images[0], images[1]
	brighter, shrunk := a.Clone(), data.Resize(a, 48, 48, data.Bicubic)
	for i := range brighter.Pix {
		brighter.Pix[i] = 0.9*brighter.Pix[i] + 0.05
	}
	distance := func(x, y *data.Image) int {
		d := 0
		for v := perceptualHash(x) ^ perceptualHash(y); v != 0; v &= v - 1 {
			d++
		}
		return d
	}
	if d := distance(a, brighter); d > 4 {
		t.Errorf("%d bits between a picture and its brighter copy", d)
	}
	if d := distance(a, shrunk); d > 8 {
		t.Errorf("%d bits between a picture and its smaller copy", d)
	}
	if d := distance(a, b); d < 12 {
		t.Errorf("%d bits between two pictures", d)
	}
	grey := data.New(20, 20)
	if flatness(grey) != 1 || flatness(a) != 0 || sharpness(grey) != 0 {
		t.Errorf("flatness %v, %v, sharpness %v", flatness(grey), flatness(a), sharpness(grey))
	}
	one := data.New(1, 1)
	if flatness(one) != 1 || sharpness(one) != 0 {
		t.Errorf("one pixel: flatness %v, sharpness %v", flatness(one), sharpness(one))
	}
	grey.Pix[3*(20*10+10)], grey.Pix[3*(20*10+10)+1], grey.Pix[3*(20*10+10)+2] = 1, 1, 1 // Laplacian -1020, four times 255
	if want := 255 * math.Sqrt(20./324); math.Abs(sharpness(grey)-want) > 1e-3 {
		t.Errorf("sharpness of a dot %v, want %v", sharpness(grey), want)
	}
}

// TestDegradationStatistics holds 10 000 draws of each second-order preset against the specification's chances (four standard deviations) and ranges.
func TestDegradationStatistics(t *testing.T) {
	const n = 10000
	for _, preset := range []string{data.PresetSeeSR, data.PresetRealESRGAN} {
		var draws []data.Params
		for i := range uint64(n) {
			p, err := data.Draw(preset, 9, i, 0)
			if err != nil {
				t.Fatal(err)
			}
			draws = append(draws, p)
		}
		counts := map[string]float64{}
		for _, row := range newStatistics(preset, draws).Rows {
			stage := strings.Join(strings.Fields(row.Stage)[:2], " ")
			if row.Value != "size" {
				counts[stage] += float64(row.Count)
			}
			var lo, hi float64
			switch row.Value {
			case "size":
				lo, hi = 7, 21
			case "quality":
				lo, hi = 30, 95
			case "cutoff":
				lo, hi = math.Pi/5, math.Pi
			case "strength":
				lo, hi = 0.05, 3
			case "scale":
				lo, hi = 0.25*0.3, 1.5
			case "sigma":
				lo, hi = 0.2, 3
				if strings.Contains(stage, "gauss") {
					lo, hi = 1, 30
				}
			}
			if row.Lowest < lo || row.Highest > hi {
				t.Errorf("%s: %s %s in %v..%v, want %v..%v", preset, row.Stage, row.Value, row.Lowest, row.Highest, lo, hi)
			}
		}
		chances := map[string]float64{"1 blur": 1, "2 blur": 1 - 0.2*0.2, "3 blur": 0.64, "1 jpeg": 1, "2 jpeg": 1, "1 resize": 1, "4 resize": 1,
			"1 gauss": 0.75, "2 gauss": 0.25, "1 poisson": 0.75, "2 poisson": 0.25}
		if preset == data.PresetRealESRGAN {
			chances["1 sharpen"] = 1
		}
		for stage, chance := range chances {
			if got, slack := counts[stage]/n, 4*math.Sqrt(chance*(1-chance)/n); math.Abs(got-chance) > slack {
				t.Errorf("%s: %s in %.4f of the draws, want %.4f ± %.4f", preset, stage, got, chance, slack)
			}
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Shard{"": {}, "0/1": {0, 1}, "2/3": {2, 3}} {
		if s, err := ParseShard(text); err != nil || s != want {
			t.Errorf("shard %q: %+v, %v", text, s, err)
		}
	}
	for _, text := range []string{"1", "3/3", "-1/2", "0/0", "1/2x", "x"} {
		if _, err := ParseShard(text); err == nil {
			t.Errorf("shard %q is accepted", text)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "custom.toml")
	for text, want := range map[string]string{
		"shrink = 0.5\n[first]\nnoise = [1, 10]\n[second]\nblur = 0\n": "",
		"shrnk = 0.5":                "unknown key shrnk",
		"shrink = 2.0":               "shrink",
		"[first]\njpeg = [90, 10]":   "first.jpeg",
		"[first":                     "toml",
		"[first]\nsigma = [1, 2, 3]": "sigma",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		d, err := ParseDegradation(file)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
				t.Errorf("%q: %v, want %q", text, err, want)
			}
			continue
		}
		if err != nil || d.Chain.Shrink != 0.5 || d.Chain.First.Noise != [2]float64{1, 10} || d.Chain.First.JPEG != data.SeeSR().First.JPEG || !strings.HasPrefix(d.Preset, "custom-") {
			t.Errorf("%q: %+v, %v", text, d, err)
			continue
		}
		if p, err := d.draw(1, 2); err != nil || p.Preset != d.Preset || p.Check() != nil {
			t.Errorf("drawn: %+v, %v", p, err)
		}
	}
	if _, err := ParseDegradation("nothing"); err == nil || !strings.Contains(err.Error(), "no preset") {
		t.Errorf("unknown preset: %v", err)
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	if err := runAll(dir, painter{side: 32}); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.Report()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, want := range []string{"brisque crop=0", "data:image/jpeg;base64,", "among the worst", "1 jpeg", "<svg", "PSNR of the copies by ", s.generated[0].Model} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, external := range []string{"http:", "https:", "src=\"/", "ZgotmplZ"} {
		if strings.Contains(text, external) {
			t.Errorf("the page has %q", external)
		}
	}
}

// TestModel: the embedded model gives the same bytes at any number of threads and whatever else is asked for, and other pictures for other seeds.
func TestModel(t *testing.T) {
	make := func(threads, first, n int, prior string, seed uint64) []*data.Image {
		m, err := OpenModel(ModelOptions{Device: "cpu", Threads: threads, Sampling: Sampling{Seed: seed, Width: 24, Height: 16, Steps: 2, Batch: 2, Prior: prior}})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		images, err := m.Generate(context.Background(), first, n)
		if err != nil || len(images) != n || images[0].W != 24 || images[0].H != 16 {
			t.Fatalf("%d images, %v", len(images), err)
		}
		return images
	}
	for _, prior := range []string{PriorAdapter, PriorBase} {
		want := make(1, 2, 2, prior, 1)
		if got := make(2, 2, 1, prior, 1); !slices.Equal(got[0].Pix, want[0].Pix) {
			t.Errorf("%s: other bits on two threads or alone", prior)
		}
		if slices.Equal(want[0].Pix, want[1].Pix) || slices.Equal(make(1, 2, 1, prior, 2)[0].Pix, want[0].Pix) {
			t.Errorf("%s: the same picture for another index or seed", prior)
		}
		for _, v := range want[0].Pix {
			if math.IsNaN(float64(v)) {
				t.Fatalf("%s: not a number", prior)
			}
		}
	}
	for want, o := range map[string]ModelOptions{
		"multiples of 4": {Sampling: Sampling{Width: 30, Height: 16}},
		"steps":          {Sampling: Sampling{Steps: -1}},
		"prior":          {Sampling: Sampling{Prior: "x"}},
		"no such model":  {Model: filepath.Join(t.TempDir(), "none")},
		"no such file":   {Empty: filepath.Join(t.TempDir(), "none.safetensors")},
	} {
		o.Device = "cpu"
		if m, err := OpenModel(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
			if err == nil {
				m.Close()
			}
		}
	}
}

func TestNIQEIsTheDefaultWhereItFits(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Shard{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for side, want := range map[int]int{32: 1, 192: 2} {
		if err := s.Generate(context.Background(), painter{side: side}, testSampling, 1, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.score(0, nil); err != nil {
			t.Fatal(err)
		}
		if got := s.scored[0]; len(got.Protocols) != want || len(got.Scores) != want || (want == 2) != strings.HasPrefix(got.Protocols[0], "niqe") {
			t.Errorf("%d pixels: %+v", side, got)
		}
		delete(s.generated, 0)
		delete(s.scored, 0)
	}
	if iqa.NIQEBlocks(191, 96) != 1 {
		t.Error("blocks")
	}
}
