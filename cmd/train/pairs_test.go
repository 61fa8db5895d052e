package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
)

// A manifest of pairs trains: held-out pairs are restored, a pair that cannot be read is named and skipped, and a run in two parts ends in the bits of one.
func TestPairs(t *testing.T) {
	dir, args := prepare(t, nano)
	lines := []string{"lq,hq"}
	for i := range 24 {
		m := data.New(40, 48)
		for k := range m.Pix {
			m.Pix[k] = float32(k*(i+3)%251) / 255
		}
		p, err := data.Draw(data.PresetEvalNoise, 1, uint64(i), 0)
		if err != nil {
			t.Fatal(err)
		}
		lq, err := p.Apply(m)
		if err != nil {
			t.Fatal(err)
		}
		for kind, m := range map[string]*data.Image{"hq": m, "lq": lq} {
			if err := data.Save(filepath.Join(dir, fmt.Sprint(kind, i, ".png")), m, data.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		lines = append(lines, fmt.Sprintf("lq%d.png,hq%d.png", i, i))
	}
	manifest := filepath.Join(dir, "pairs.csv")
	if err := os.WriteFile(manifest, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "lq2.png"), 300); err != nil {
		t.Fatal(err)
	}
	args = append(args, "--photos", manifest, "--steps", "8", "--sample-every", "4")
	train := func(run string, more ...string) (state []byte, log string) {
		t.Helper()
		var text bytes.Buffer
		run = filepath.Join(dir, run)
		if err := runArgs(&text, args, append(more, "--run", run)); err != nil {
			t.Fatal(err)
		}
		state, err := os.ReadFile(filepath.Join(run, "adapter.state.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		return state, text.String()
	}
	want, log := train("straight")
	for _, line := range []string{"data: 21 pairs, 3 held out for validation", "data: skipped (1 of 21 so far): pair line 4: " + filepath.Join(dir, "lq2.png") + ": truncated PNG",
		"adapter step 8  PSNR gain  pairs ", " pairs/s  "} {
		if !strings.Contains(log, line) {
			t.Errorf("no %q in %s", line, log)
		}
	}
	train("parts", "--steps", "3")
	if got, _ := train("parts"); !bytes.Equal(got, want) {
		t.Error("a run in two parts ends in other bits")
	}
	if _, err := os.Stat(filepath.Join(dir, "straight", "samples", "adapter-pairs-00000008.png")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(manifest, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, log := train("parts", "--steps", "9"); !strings.Contains(log, "changed since the state was saved: manifest of the data: SHA-256") {
		t.Errorf("nothing about another manifest in %s", log)
	}
	for want, text := range map[string]string{"bad.csv:1: header \"a,b\"": "a,b\n", "no pairs in this manifest": "lq,hq\n", "too many unreadable images": "lq,hq\nnone.png,none.png\n"} {
		bad := filepath.Join(dir, "bad.csv")
		if err := os.WriteFile(bad, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := runArgs(&bytes.Buffer{}, args, []string{"--photos", bad, "--run", filepath.Join(dir, "bad")}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}
