package evaluate

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/iqa"
)

// trio writes a folder each of results, references and inputs.
func trio(t *testing.T) (result, reference, input string) {
	t.Helper()
	dir := t.TempDir()
	result, reference, input = filepath.Join(dir, "result"), filepath.Join(dir, "reference"), filepath.Join(dir, "input")
	for k, name := range []string{"a", "b", "c"} {
		clean := textured(72, 64)
		good, bad := clean.Clone(), clean.Clone()
		for i := range good.Pix {
			good.Pix[i] += 0.01 * float32(k+1)
			bad.Pix[i] = 0.8*bad.Pix[i] + 0.05*float32(i%5)
		}
		for path, m := range map[string]*data.Image{result + "/" + name + ".png": good, reference + "/" + name + ".tif": clean, input + "/" + name + ".png": bad} {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := data.Save(path, m, data.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return result, reference, input
}

func metrics(t *testing.T, names ...string) []*iqa.Metric {
	t.Helper()
	m, err := iqa.Parse(names, iqa.Networks{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestScorePairs(t *testing.T) {
	result, reference, input := trio(t)
	pairs, err := Pairs(result, reference, input)
	if err != nil || len(pairs) != 3 || filepath.Base(pairs[1].Reference) != "b.tif" {
		t.Fatalf("%+v, %v", pairs, err)
	}
	lines, err := ScorePairs(context.Background(), pairs, ScoreOptions{Metrics: metrics(t, "psnr", "ssim", "brisque"), Setup: iqa.Setup{Border: 2}, Shrink: 2})
	if err != nil || len(lines) != 3*7 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	ds, err := Distributions(lines)
	if err != nil || len(ds) != 7 {
		t.Fatalf("%d distributions, %v", len(ds), err)
	}
	for _, d := range ds {
		if d.Images != 3 || !(d.Low <= d.Mean+1e-9 && d.Mean <= d.High+1e-9) || d.Metric == "brisque" != d.LowerBetter {
			t.Errorf("%+v", d)
		}
		if d.Kind == KindResult && d.Metric == "psnr" && (d.Mean < 30 || d.Median > 40) {
			t.Errorf("psnr of 0.01 to 0.03 off: %+v", d)
		}
	}
	var csv, page bytes.Buffer
	if err := WriteLines(&csv, lines); err != nil {
		t.Fatal(err)
	}
	back, err := ReadLines(&csv, "scores.csv")
	if err != nil || len(back) != len(lines) || back[5] != lines[5] {
		t.Fatalf("read back: %v", err)
	}
	if err := WritePage(&page, pairs, lines, ds, 2); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	if c, b := strings.Index(text, "<h3>c.png"), strings.Index(text, "<h3>b.png"); c < 0 || b < c || strings.Contains(text, "<h3>a.png") {
		t.Errorf("the two worst are not first: %d, %d", c, b)
	}
	if strings.Count(text, "data:image/jpeg;base64,") != 6 || strings.Contains(text, "ZgotmplZ") || strings.Contains(text, "http") {
		t.Error("the page's pictures")
	}

	blind, err := Pairs(result, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if lines, err := ScorePairs(context.Background(), blind, ScoreOptions{Metrics: metrics(t, "psnr", "brisque")}); err != nil || len(lines) != 3 {
		t.Errorf("without references: %d lines, %v", len(lines), err)
	}
}

func TestScoreBadInput(t *testing.T) {
	result, reference, input := trio(t)
	if err := data.Save(result+"/a.png", data.New(1, 1), data.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(result+"/b.png", []byte("no picture"), 0o644); err != nil {
		t.Fatal(err)
	}
	pairs, err := Pairs(result, reference, input)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := ScorePairs(context.Background(), pairs, ScoreOptions{Metrics: metrics(t, "psnr", "niqe"), Shrink: 100})
	for _, want := range []string{"a.png: psnr: image of 1x1 pixels, reference of 72x64", "b.png", "c.png: NIQE: image of 72x64 pixels is too small", "a.png: lq-consistency", "input of 72x64 pixels is too small"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	if len(lines) != 3 { // psnr of inputs a and c, of result c
		t.Errorf("%d lines: %+v", len(lines), lines)
	}
	os.Remove(reference + "/c.tif")
	if _, err := Pairs(result, reference, ""); err == nil || !strings.Contains(err.Error(), "no picture for") || !strings.Contains(err.Error(), "c.png") {
		t.Errorf("a missing reference: %v", err)
	}
	for text, want := range map[string]string{"": "no scores", "image,kind,metric,value,protocol\na,result,psnr,x,p\n": `value "x"`, "a,b\nc\n": "wrong number"} {
		if _, err := ReadLines(strings.NewReader(text), "s.csv"); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "s.csv") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCompare(t *testing.T) {
	line := func(image string, v float64, protocol string) Line {
		return Line{image, KindResult, "psnr", v, protocol}
	}
	a := []Line{line("a", 20, "p"), line("b", 30, "p"), line("c", math.Inf(1), "p")}
	b := []Line{line("a", 21, "p"), line("b", 29.5, "p"), line("c", math.Inf(1), "p")}
	d, err := Compare(a, b)
	if err != nil || len(d) != 1 || d[0].Images != 3 || d[0].BWins != 1 || math.IsNaN(d[0].Low) || d[0].Low < -0.5 || d[0].High > 1 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := Compare(a, []Line{line("a", 1, "p"), line("b", 1, "q"), line("c", 1, "p")}); err == nil || !strings.Contains(err.Error(), "protocols differ") {
		t.Errorf("other protocols: %v", err)
	}
	for _, pair := range [][2][]Line{{a, b[:2]}, {a[:2], b}} {
		if _, err := Compare(pair[0], pair[1]); err == nil || !strings.HasPrefix(err.Error(), "c: only the") {
			t.Errorf("other images: %v", err)
		}
	}
	if _, err := Distributions([]Line{line("a", 1, "p"), line("b", 1, "q")}); err == nil {
		t.Error("mixed protocols are summarised")
	}
}

// TestLQConsistency: a perfect restoration degrades to exactly the input, another does not.
func TestLQConsistency(t *testing.T) {
	files, err := Photos([]string{folder(t)})
	if err != nil {
		t.Fatal(err)
	}
	clean, err := data.Load(files[0])
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Seed: 1, LQConsistency: true, Presets: []string{data.PresetEvalNoise}}
	rows, err := Run(context.Background(), func(context.Context, *data.Image) (*data.Image, error) { return clean.Clone(), nil }, files[:1], o)
	if err != nil || !math.IsInf(rows[0].LQ, 1) {
		t.Errorf("the truth: %+v, %v", rows, err)
	}
	rows, err = Run(context.Background(), func(_ context.Context, m *data.Image) (*data.Image, error) { return m, nil }, files[:1], o)
	if err != nil || rows[0].LQ < 10 || rows[0].LQ > 40 {
		t.Errorf("nothing done: %+v, %v", rows, err)
	}
	var table bytes.Buffer
	Markdown(&table, Summarise(rows))
	if !strings.Contains(table.String(), "lq-consistency, eval-noise: ") {
		t.Errorf("table:\n%s", &table)
	}
}
