package evaluate

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
)

// textured is a picture with detail at several scales.
func textured(w, h int) *data.Image {
	m := data.New(w, h)
	for i := range m.Pix {
		x, y := float64(i/3%w), float64(i/3/w)
		m.Pix[i] = float32(0.5 + 0.25*math.Sin(x*0.7)*math.Cos(y*0.4) + 0.2*math.Sin(x*0.05+float64(i%3)))
	}
	return m
}

func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"b.png", "a.png"} {
		if err := data.Save(filepath.Join(dir, name), textured(96, 72), data.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("no picture"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRun(t *testing.T) {
	dir := folder(t)
	files, err := Photos([]string{dir})
	if err != nil || len(files) != 2 || filepath.Base(files[0]) != "a.png" {
		t.Fatalf("Photos: %v, %v", files, err)
	}
	identity := func(_ context.Context, m *data.Image) (*data.Image, error) { return m.Clone(), nil }
	saved := t.TempDir()
	rows, err := Run(context.Background(), identity, files, Options{Crop: 64, Seed: 1, Save: saved})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 6 {
		t.Fatalf("%d rows, want 2 pictures × 3 degradations", len(rows))
	}
	for _, r := range rows {
		if r.Input != r.Output {
			t.Errorf("%s %s: identity changed the scores: %+v, %+v", r.Image, r.Preset, r.Input, r.Output)
		}
		if r.Input.PSNR < 15 || r.Input.PSNR > 50 || r.Input.SSIM <= 0 || r.Input.SSIM >= 1 {
			t.Errorf("%s %s: scores of a degraded picture: %+v", r.Image, r.Preset, r.Input)
		}
	}
	for _, kind := range []string{"clean", "degraded", "restored"} {
		if m, err := data.Load(filepath.Join(saved, kind, "a.eval-blur.png")); err != nil || m.W != 64 || m.H != 64 {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestRunNamesTheFileThatFails(t *testing.T) {
	files, err := Photos([]string{folder(t)})
	if err != nil {
		t.Fatal(err)
	}
	broken := func(context.Context, *data.Image) (*data.Image, error) { return nil, errors.New("no luck") }
	if _, err := Run(context.Background(), broken, files, Options{}); err == nil || !strings.Contains(err.Error(), "a.png: eval-noise: no luck") {
		t.Errorf("error %v", err)
	}
	if _, err := Photos([]string{t.TempDir()}); err == nil {
		t.Error("a folder without pictures")
	}
}

func TestSummary(t *testing.T) {
	rows := []Row{
		{Image: "a", Preset: "p", Input: Scores{PSNR: 20, SSIM: 0.5}, Output: Scores{PSNR: 23, SSIM: 0.7}, Seconds: 1},
		{Image: "b", Preset: "p", Input: Scores{PSNR: 30, SSIM: 0.7}, Output: Scores{PSNR: 29, SSIM: 0.7}, Seconds: 3},
		{Image: "a", Preset: "q", Input: Scores{PSNR: 10, SSIM: 0.3}, Output: Scores{PSNR: 11, SSIM: 0.4}, Seconds: 2},
	}
	s := Summarise(rows)
	if len(s) != 3 || s[0].Preset != "p" || s[2].Preset != "mean" {
		t.Fatalf("groups %+v", s)
	}
	if p := s[0]; p.Images != 2 || p.Input.PSNR != 25 || p.Output.PSNR != 26 || p.WorstGain != -1 || p.WorstImage != "b" || p.Seconds != 2 {
		t.Errorf("group p: %+v", p)
	}
	if m := s[2]; m.Images != 3 || math.Abs(m.Output.PSNR-m.Input.PSNR-1) > 1e-9 {
		t.Errorf("mean: %+v", m)
	}
	var table, lines bytes.Buffer
	Markdown(&table, s)
	if want := "| p | 2 | 25.00 → 26.00 (**+1.00 dB**) | -1.00 (b) |"; !strings.Contains(table.String(), want) {
		t.Errorf("table lacks %q:\n%s", want, &table)
	}
	if err := WriteCSV(&lines, rows); err != nil || strings.Count(lines.String(), "\n") != 4 {
		t.Errorf("csv: %v\n%s", err, &lines)
	}
}
