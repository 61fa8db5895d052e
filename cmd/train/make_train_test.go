package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fluxir/fluxir/pkg/train"
)

// What `make train` does in a fresh clone, shorter: the adapter on the embedded base learns from the shipped photograph, is interrupted once and goes on.
func TestMakeTrain(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run")
	args := []string{"--config", "../../configs/nano_adapter.toml", "--photos", "../../testdata/photo/castle_clean.jpg", "--run", run, "--steps", "150",
		"--set", "log_every=1", "--set", "items=40"} // every ten steps have the same pairs, so that their losses compare
	c := command(args...)
	out := &bytes.Buffer{}
	c.Stderr = out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, run, 75)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || !strings.Contains(out.String(), "stopped; resume with") {
		t.Fatalf("%v: %s", err, out)
	}
	if text, err := command(args...).CombinedOutput(); err != nil || !bytes.Contains(text, []byte("from step ")) || bytes.Contains(text, []byte("from step 0 ")) {
		t.Fatalf("%v: %s", err, text)
	}
	records, gains := losses(t, run)
	if len(records) != 150 || len(gains) != 3 {
		t.Fatalf("%d steps and %d validations, want 150 and 3", len(records), len(gains))
	}
	loss := func(from, to int) (sum float64) {
		for _, r := range records[from:to] {
			sum += r.Loss / float64(to-from)
		}
		return sum
	}
	if first, last := loss(0, 50), loss(100, 150); last > 0.95*first {
		t.Errorf("mean loss of the first 50 steps %.4f, of the last 50 %.4f", first, last)
	}
	mean := func(gains []float64) (m float64) {
		for _, g := range gains {
			m += g / float64(len(gains))
		}
		return m
	}
	if first, last := mean(gains[0].Gains), mean(gains[2].Gains); last < first+0.2 {
		t.Errorf("validation gain %.2f dB after 50 steps, %.2f after 150", first, last)
	}
	t.Logf("loss %.4f, then %.4f; gain %.2f dB, then %.2f", loss(0, 50), loss(100, 150), mean(gains[0].Gains), mean(gains[2].Gains))
	if files, _ := filepath.Glob(filepath.Join(run, "events.out.tfevents.*")); len(files) != 2 {
		t.Errorf("event files %v, want one a start", files)
	}
	if _, err := os.Stat(filepath.Join(run, "export", "adapter.safetensors")); err != nil {
		t.Error(err)
	}
}

// losses are the records of a run, in order: logged steps, validations.
func losses(t *testing.T, run string) (steps, validations []train.Record) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(run, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range bytes.Split(bytes.TrimSpace(text), []byte("\n")) {
		var r train.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		if r.Gains == nil {
			steps = append(steps, r)
		} else {
			validations = append(validations, r)
		}
	}
	return steps, validations
}
