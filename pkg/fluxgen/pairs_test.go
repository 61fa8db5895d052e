package fluxgen

import (
	"path/filepath"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
)

// The trainer reads a set as pairs: the degraded copies of the pictures that are kept, checked by their sums.
func TestSetIsAManifest(t *testing.T) {
	dir := t.TempDir()
	if err := runAll(dir, painter{side: testSampling.Width}); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, line := range s.degraded {
		if s.selected[line.Index].Kept {
			want++
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, manifestName)} {
		pairs, err := data.ReadPairs(path)
		if err != nil || len(pairs) != want || want == 0 || !data.IsManifest(path) {
			t.Fatalf("%s: %d pairs (%v), want %d", path, len(pairs), err, want)
		}
		set, err := data.OpenPairs(pairs, testSampling.Width)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range pairs {
			if p.HQSum == "" || p.LQSum == "" {
				t.Errorf("%+v: no sums", p)
			}
			if _, _, err := set.Load([]int{i}, 0); err != nil {
				t.Error(err)
			}
		}
	}
}
