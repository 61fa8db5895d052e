package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pairFolder writes n pairs of 40 × 36 pixels as hq/I.png and lq/I.png, where LQ is HQ's complement, and returns their manifest as lines of CSV.
func pairFolder(t *testing.T, n int) (dir string, lines []string) {
	t.Helper()
	dir = t.TempDir()
	lines = []string{"id,lq,hq"}
	for _, sub := range []string{"hq", "lq"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		m := texturedPhoto(40, 36, uint64(i+1)).Image()
		for k := 2; k < len(m.Pix); k += 3 {
			m.Pix[k] = float32(10*i) / 255 // tells which pair it is
		}
		inverse := m.Clone()
		for k, v := range m.Pix {
			inverse.Pix[k] = 1 - v
		}
		if err := errors.Join(Save(filepath.Join(dir, "hq", fmt.Sprint(i, ".png")), m, SaveOptions{}), Save(filepath.Join(dir, "lq", fmt.Sprint(i, ".png")), inverse, SaveOptions{})); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("p%d,lq/%d.png,hq/%d.png", i, i, i))
	}
	return dir, lines
}

func manifest(t *testing.T, dir, name string, lines []string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func openPairs(t *testing.T, path string, least int) *PairSet {
	t.Helper()
	pairs, err := ReadPairs(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenPairs(pairs, least)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Both pictures are cut at the same place, every epoch has every pair once in another order, and batches do not depend on workers or on where the loader starts.
func TestLoaderOfPairs(t *testing.T) {
	dir, lines := pairFolder(t, 10)
	cfg := LoaderConfig{Pairs: openPairs(t, manifest(t, dir, "pairs.csv", lines), 36), Seed: 4, Batch: 5, Size: 36}
	want := loadSteps(t, cfg, 0, 6)
	var orders [3][]int
	for epoch := range orders {
		for _, b := range want[2*epoch : 2*epoch+2] {
			for i, v := range b.HQ {
				if math.Abs(float64(v+b.LQ[i])) > 1e-6 {
					t.Fatalf("hq %g, lq %g at %d: not the same place", v, b.LQ[i], i)
				}
			}
			for i := range 5 {
				orders[epoch] = append(orders[epoch], int(math.Round(float64(b.HQ[i*36*36*3+2]+1)*12.75)))
			}
		}
		if all := slices.Sorted(slices.Values(orders[epoch])); !slices.Equal(all, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
			t.Errorf("epoch %d: pairs %v", epoch, all)
		}
	}
	if slices.Equal(orders[0], orders[1]) || slices.Equal(orders[1], orders[2]) || slices.IsSorted(orders[0]) {
		t.Errorf("orders %v", orders)
	}
	for _, workers := range []int{1, 3} {
		cfg.Workers = workers
		for i, b := range loadSteps(t, cfg, 3, 3) {
			if w := want[3+i]; b.Step != w.Step || !slices.Equal(b.HQ, w.HQ) || !slices.Equal(b.LQ, w.LQ) {
				t.Errorf("workers %d: batch %d differs", workers, 3+i)
			}
		}
	}
	cfg.Items = 10 // of the first epoch
	again := loadSteps(t, cfg, 2, 2)
	if !slices.Equal(again[0].HQ, want[0].HQ) || !slices.Equal(again[1].LQ, want[1].LQ) {
		t.Error("items: the first batches do not come again")
	}
}

// A pair that cannot be read is named, counted and replaced by the next one; the others stay where they are. More than a tenth of them stop the loader.
func TestUnreadablePairs(t *testing.T) {
	dir, lines := pairFolder(t, 20)
	path := manifest(t, dir, "pairs.csv", lines)
	cfg := LoaderConfig{Pairs: openPairs(t, path, 32), Seed: 4, Batch: 20, Size: 32}
	want := loadSteps(t, cfg, 0, 1)[0]
	damage := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(filepath.Join(dir, "lq", "3.png"))
	if err != nil {
		t.Fatal(err)
	}
	damage("lq/3.png", whole[:len(whole)-200]) // found when it is decoded
	damage("hq/7.png", nil)                    // found when the set is opened
	var said []string
	cfg.Skipped = func(err error, count int) { said = append(said, fmt.Sprint(count, ": ", err)) }
	cfg.Pairs = openPairs(t, path, 32)
	cfg.Workers = 3
	got := loadSteps(t, cfg, 0, 1)[0]
	differ := 0
	for i := range 20 {
		n := 32 * 32 * 3
		if !slices.Equal(got.HQ[i*n:][:n], want.HQ[i*n:][:n]) {
			differ++
		}
	}
	if differ != 2 {
		t.Errorf("%d of 20 items are others, want 2", differ)
	}
	if text := strings.Join(said, "\n"); len(said) != 2 || !strings.Contains(text, "1: pair p7: "+filepath.Join(dir, "hq", "7.png")+": empty file") ||
		!strings.Contains(text, "2: pair p3: "+filepath.Join(dir, "lq", "3.png")+": truncated PNG") {
		t.Errorf("said %q", said)
	}
	damage("hq/9.png", []byte("no image"))
	pairs, err := ReadPairs(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Pairs = openPairs(t, path, 32)
	l, err := NewPatchLoader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err = l.Next(); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "3 of 20 pairs") || strings.Contains(err.Error(), "\n") {
		t.Errorf("three of twenty: %v", err)
	}
	if _, err := OpenPairs(pairs, 64); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "40x36 pixels, want 64x64 or more") {
		t.Errorf("too small: %v", err)
	}
}

func TestReadPairs(t *testing.T) {
	dir, lines := pairFolder(t, 2)
	sum := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		s := sha256.Sum256(b)
		return hex.EncodeToString(s[:])
	}
	csv, err := ReadPairs(manifest(t, dir, "a.csv", append(lines, `"x, y",/abs/l.png,"h ""q"".png"`)))
	if err != nil {
		t.Fatal(err)
	}
	want := []Pair{
		{ID: "p0", HQ: filepath.Join(dir, "hq/0.png"), LQ: filepath.Join(dir, "lq/0.png")}, {ID: "p1", HQ: filepath.Join(dir, "hq/1.png"), LQ: filepath.Join(dir, "lq/1.png")},
		{ID: "x, y", HQ: filepath.Join(dir, `h "q".png`), LQ: "/abs/l.png"},
	}
	if !slices.Equal(csv, want) {
		t.Errorf("csv: %+v", csv)
	}
	json, err := ReadPairs(manifest(t, dir, "a.jsonl", []string{`{"lq":"lq/0.png","hq":"hq/0.png","lq_sha256":"` + sum("lq/0.png") + `","caption":"a"}`, "",
		`{"id":"p1","lq":"lq/1.png","hq":"hq/1.png","hq_sha256":"` + strings.Repeat("0", 64) + `"}`}))
	if err != nil || len(json) != 2 || json[0].ID != "line 1" || json[0].LQSum != sum("lq/0.png") {
		t.Fatalf("jsonl: %+v (%v)", json, err)
	}
	if _, _, err := json[0].load(8); err != nil {
		t.Error(err)
	}
	if _, _, err := json[1].load(8); err == nil || !strings.Contains(err.Error(), "its SHA-256 is") {
		t.Errorf("another file than the manifest's: %v", err)
	}
	for text, complaint := range map[string]string{
		"a,b\n1,2": "want the columns lq and hq", "lq,hq\n1": "line 2", "lq,hq\n1,": ":2: want lq and hq", "lq,hq": "no pairs", "lq,hq,lq_sha256\n1,2,zz": "want 64 hexadecimal digits",
	} {
		if _, err := ReadPairs(manifest(t, dir, "bad.csv", []string{text})); err == nil || !strings.Contains(err.Error(), complaint) || !strings.Contains(err.Error(), "bad.csv") {
			t.Errorf("%q: %v; want %q", text, err, complaint)
		}
	}
	for text, complaint := range map[string]string{`{"lq":"a"}`: ":1: want lq and hq", `{"lq":1}`: ":1: ", `{"lq"`: ":1: ", "": "no pairs", `{"stage":"generate","index":0,"file":"hq/0.png"}`: "no pairs"} {
		if _, err := ReadPairs(manifest(t, dir, "bad.jsonl", []string{text})); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%q: %v; want %q", text, err, complaint)
		}
	}
}

func TestSplitPairs(t *testing.T) {
	var pairs []Pair
	for i := range 40 {
		pairs = append(pairs, Pair{ID: fmt.Sprint(i), HQ: fmt.Sprint(i / 2)}) // two copies of each picture
	}
	train, held := SplitPairs(pairs)
	if len(train) != 36 || len(held) != 4 || held[0].HQ != "7" || held[3].HQ != "15" || slices.ContainsFunc(train, func(p Pair) bool { return p.HQ == "7" }) {
		t.Errorf("train %v, held %v", train, held)
	}
	if train, held := SplitPairs(pairs[:14]); len(train) != 14 || len(held) != 14 {
		t.Errorf("seven pictures: %d, %d", len(train), len(held))
	}
}

func FuzzReadPairs(f *testing.F) {
	for _, text := range []string{"lq,hq\na,b\n", `{"lq":"a","hq":"b"}`, `{"stage":"degrade","index":1,"params":{"preset":"x"},"file":"f"}`, "id,lq,hq\n\"a\nb\",c,d"} {
		f.Add([]byte(text), true)
		f.Add([]byte(text), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, table bool) {
		read := (&fluxgenSet{hq: map[int]Pair{}, dropped: map[int]bool{}, lq: map[string]fluxgenLine{}}).readLines
		if table {
			read = readCSV
		}
		pairs, err := read("m", bytes.NewReader(text))
		for _, p := range pairs {
			if err != nil || p.HQ == "" || p.LQ == "" || p.ID == "" {
				t.Errorf("pair %+v (%v)", p, err)
			}
		}
	})
}

// A pair of 512 × 512 pixels, JPEG and PNG, as one worker makes it.
func BenchmarkPair512(b *testing.B) {
	dir := b.TempDir()
	m := texturedPhoto(512, 512, 1).Image()
	if err := errors.Join(Save(filepath.Join(dir, "hq.png"), m, SaveOptions{}), Save(filepath.Join(dir, "lq.jpg"), m, SaveOptions{})); err != nil {
		b.Fatal(err)
	}
	set, err := OpenPairs([]Pair{{ID: "0", HQ: filepath.Join(dir, "hq.png"), LQ: filepath.Join(dir, "lq.jpg")}}, 512)
	if err != nil {
		b.Fatal(err)
	}
	w := patchWorker{cfg: &LoaderConfig{Pairs: set, Batch: 1, Size: 512}}
	batch := Batch{HQ: make([]float32, 3*512*512), LQ: make([]float32, 3*512*512)}
	for b.Loop() {
		if err := w.fill(&batch); err != nil {
			b.Fatal(err)
		}
	}
}
