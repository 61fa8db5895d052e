package train

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
)

func TestLoadSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("stage = \"adapter\"\nclip = 2\nlr = 1e-3\n[loss]\npixel = 0.5\n")
	s, err := LoadSettings("", file, []string{"lr = 0.5", "time.kind = \"uniform\""})
	if err != nil {
		t.Fatal(err)
	}
	if s.Stage != StageAdapter || s.Clip != 2 || s.LR != 0.5 || s.Loss.Pixel != 0.5 || s.Loss.Flow != 0.05 || s.Time.Kind != Uniform || s.Batch != 16 {
		t.Errorf("file, overrides and defaults resolve to %+v", s)
	}
	text, err := s.TOML()
	if err != nil {
		t.Fatal(err)
	}
	write(string(text))
	if again, err := LoadSettings("", file, nil); err != nil || !reflect.DeepEqual(again, s) {
		t.Errorf("stored configuration reads as %+v, %v; want %+v", again, err, s)
	}
	for line, want := range map[string]string{
		"stepps = 3": "run.toml:2: unknown key stepps", "loss.flw = 1": "run.toml:2: unknown key loss.flw", "steps = 'a'": "run.toml:2: steps: got string, want int64",
		"steps = = 3": "run.toml:2:", "warm_up = 1.5": "warm_up: got float", "lr = -1": "lr: got -1", "lr_se = nan": "lr_se: got NaN", "workers = 0": "workers: got 0",
		"stage = 'nap'": "run.toml:2:", "model = 'a'\nwarm = 'b'": "model, warm", "watts = -3": "watts", "[[loss]]": "run.toml:2:",
	} {
		write("stage = \"adapter\"\n" + line + "\n")
		if _, err := LoadSettings("", file, nil); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
	write("steps = 3\n")
	if _, err := LoadSettings("", file, nil); !errors.Is(err, ErrConfig) {
		t.Errorf("no stage: %v", err)
	}
	for _, example := range []string{"nano_adapter", "flux_adapter"} {
		if _, err := LoadSettings("", "../../configs/"+example+".toml", nil); err != nil {
			t.Error(err)
		}
	}
}

func TestDifferences(t *testing.T) {
	was := DefaultConfig(StageTune)
	is := was
	is.LR, is.Batch, is.Loss.Pixel, is.Seed = 1, 3, 7, 9
	stored, err := json.Marshal(was)
	if err != nil {
		t.Fatal(err)
	}
	fixed, free, err := is.differences(stored)
	if err != nil || !slices.Equal(fixed, []string{"seed: 1 there, 9 now", "loss.pixel: 0.1 there, 7 now"}) ||
		!slices.Equal(free, []string{"batch: 16 there, 3 now", "lr: 0.0006 there, 1 now"}) {
		t.Errorf("fixed %q, free %q, %v", fixed, free, err)
	}
	// A state of before accumulate, keep and the factors.
	old := `{"stage":"tune","steps":20000,"batch":16,"size":64,"preset":"light","seed":1,"time":{"kind":"logit_normal"},"loss":{"flow":1}}`
	if fixed, free, err := was.differences([]byte(old)); fixed != nil || free != nil || err != nil {
		t.Errorf("older state: %q, %q, %v", fixed, free, err)
	}
}

func TestOpenPhotos(t *testing.T) {
	folder, run := t.TempDir(), t.TempDir()
	save := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := data.Save(filepath.Join(folder, name), tinyPhotos()[0].Image(), data.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var text strings.Builder
	log, err := OpenLog(run, &text)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	count := func(path string, train, held int) {
		t.Helper()
		sets, err := openPhotos(path, run, log)
		if err != nil {
			t.Fatal(err)
		}
		defer sets.Close()
		if len(sets.train) != train || len(sets.held) != held {
			t.Errorf("%s: %d to train, %d held out, want %d, %d", path, len(sets.train), len(sets.held), train, held)
		}
	}
	if _, err := openPhotos(filepath.Join(folder, "none"), run, log); err == nil || !strings.Contains(err.Error(), "make photos") {
		t.Errorf("missing folder: %v", err)
	}
	if _, err := openPhotos(folder, run, log); err == nil || !strings.Contains(err.Error(), "no images") {
		t.Errorf("empty folder: %v", err)
	}
	save("a.png", "b.png")
	count(folder, 2, 2)
	if !strings.Contains(text.String(), "too few to hold any out") {
		t.Errorf("log of a small set: %s", &text)
	}
	count(filepath.Join(folder, "a.png"), 1, 1)
	save("c.png", "d.png", "e.png", "f.png", "g.png", "h.png", "i.png", "j.png")
	if err := os.WriteFile(filepath.Join(folder, "bad.png"), []byte("not a picture"), 0o644); err != nil {
		t.Fatal(err)
	}
	count(folder, 9, 1)
	if !strings.Contains(text.String(), "skipped (1 so far): "+filepath.Join(folder, "bad.png")) {
		t.Errorf("log of an unreadable file: %s", &text)
	}
	if err := os.WriteFile(filepath.Join(folder, "worse.jpg"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openPhotos(folder, run, log); !errors.Is(err, data.ErrUnreadable) {
		t.Errorf("two unreadable of twelve: %v", err)
	}
}
