package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/train"
)

// readResults reads the results of a set, without what depends on the clock.
func readResults(t *testing.T, run string) map[string]train.Result {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(run, "*", "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]train.Result{}
	for _, path := range files {
		var r train.Result
		b, err := os.ReadFile(path)
		if err := errors.Join(err, json.Unmarshal(b, &r)); err != nil {
			t.Fatal(err)
		}
		r.Seconds = 0
		all[filepath.Base(filepath.Dir(path))] = r
	}
	return all
}

// A set that is killed goes on where it stopped and ends in the same numbers, arms differ from the baseline, and what is there is not made again.
func TestAblate(t *testing.T) {
	dir, args := prepare(t, nano)
	md := filepath.Join(dir, "ablations.md")
	if err := os.WriteFile(md, []byte("before\n<!-- begin ablations -->\nstale\n<!-- end ablations -->\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args[0] = "ablate"
	args = append(args, "--steps", "8", "--accumulate", "1", "--seeds", "2", "--jobs", "2", "--md", md, "--set", "loss.pixel=0.5", "--set", "loss.flow=0.5")
	straight := append(slices.Clone(args), "--run", filepath.Join(dir, "straight"))
	killed := append(slices.Clone(args), "--run", filepath.Join(dir, "killed"))
	if err := run(append([]string{"train"}, straight...), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	c := command(killed...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, filepath.Join(dir, "killed", "se-double-1"), 3)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if n := len(readResults(t, filepath.Join(dir, "killed"))); n >= 14 {
		t.Fatalf("%d runs had ended before the kill", n)
	}
	if err := run(append([]string{"train"}, killed...), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	want, got := readResults(t, filepath.Join(dir, "straight")), readResults(t, filepath.Join(dir, "killed"))
	if len(want) != 14 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d results, then %d other ones: %+v, %+v", len(want), len(got), want, got)
	}
	for _, arm := range train.Arms()[1:] {
		if reflect.DeepEqual(want[arm.Name+"-1"].Measures, want["baseline-1"].Measures) {
			t.Errorf("%s: the same as the baseline", arm.Name)
		}
	}
	checkReport(t, md)
	before, err := os.Stat(filepath.Join(dir, "killed", "uniform-2", "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := run(append([]string{"train"}, killed...), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(dir, "killed", "uniform-2", "result.json")); err != nil || after.ModTime() != before.ModTime() {
		t.Errorf("a run that had ended was repeated (%v)", err)
	}
	err = run(append([]string{"train"}, append(killed, "--lr", "0.5")...), &bytes.Buffer{})
	if !errors.Is(err, train.ErrConfig) || !strings.Contains(err.Error(), "lr: 0.001 there, 0.5 now") {
		t.Errorf("another learning rate: %v", err)
	}
}

// checkReport looks at the tables and plots of two seeds.
func checkReport(t *testing.T, md string) {
	t.Helper()
	b, err := os.ReadFile(md)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if !strings.HasPrefix(text, "before\n<!-- begin") || !strings.HasSuffix(text, "<!-- end ablations -->\nafter\n") || strings.Contains(text, "stale") {
		t.Errorf("text around the tables: %s", text)
	}
	for _, arm := range train.Arms() {
		if !regexp.MustCompile(`(?m)^\| ` + arm.Name + ` \| 2 \|( -?\d+\.\d+ ± \d+\.\d+ \|){6}$`).MatchString(text) {
			t.Errorf("no row of %s in %s", arm.Name, text)
		}
		if arm.Name != "baseline" && !regexp.MustCompile(`(?m)^\| `+arm.Name+` \| .* \|( (\*\*)?[+-]\d+\.\d+ ± \d+\.\d+(\*\*)? \|){6}$`).MatchString(text) {
			t.Errorf("no differences of %s in %s", arm.Name, text)
		}
	}
	for _, name := range []string{"-psnr.svg", "-velocity.svg"} {
		if b, err := os.ReadFile(strings.TrimSuffix(md, ".md") + name); err != nil || !bytes.Contains(b, []byte("</svg>")) || !bytes.Contains(b, []byte("image-only")) {
			t.Errorf("plot %s (%v)", name, err)
		}
	}
}
