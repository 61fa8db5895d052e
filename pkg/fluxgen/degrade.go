package fluxgen

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/fluxir/fluxir/pkg/data"
)

// Degradation says how copies are degraded.
type Degradation struct {
	Preset string      // of data.Draw, or a name of the chain's own
	Chain  *data.Chain // nil: the preset's
	Seed   uint64
	Copies int // a picture; 0 = 1
}

// ParseDegradation reads a preset's name or the name of a TOML file with a chain of its own (docs/fluxgen.md), which starts from SeeSR's values.
func ParseDegradation(name string) (Degradation, error) {
	if _, err := data.Draw(name, 0, 0, 0); err == nil {
		return Degradation{Preset: name}, nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return Degradation{}, fmt.Errorf("degradation %q is no preset (realesrgan, seesr, light, jpeg) and no file: %w", name, err)
	}
	chain := data.SeeSR()
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&chain); err != nil {
		var extra *toml.StrictMissingError
		if errors.As(err, &extra) {
			err = fmt.Errorf("unknown key %s", strings.Join(extra.Errors[0].Key(), "."))
		}
		return Degradation{}, fmt.Errorf("%s: %w", name, err)
	}
	if err := checkLengths(text); err != nil {
		return Degradation{}, fmt.Errorf("%s: %w", name, err)
	}
	if err := chain.Validate(); err != nil {
		return Degradation{}, fmt.Errorf("%s: %w", name, err)
	}
	sum := sha256.Sum256(text)
	return Degradation{Preset: "custom-" + hex.EncodeToString(sum[:4]), Chain: &chain}, nil
}

// checkLengths holds the arrays of a chain's file to their lengths, which the decoder fills or cuts silently.
func checkLengths(text []byte) error {
	var sections map[string]any
	if err := toml.Unmarshal(text, &sections); err != nil {
		return err
	}
	for name, section := range sections {
		keys, _ := section.(map[string]any)
		for key, value := range keys {
			want := 2
			if key == "resize" {
				want = 3
			}
			if list, ok := value.([]any); ok && len(list) != want {
				return fmt.Errorf("%s.%s: %d numbers, want %d", name, key, len(list), want)
			}
		}
	}
	return nil
}

func (o Degradation) draw(i, copy int) (data.Params, error) {
	if o.Chain != nil {
		return data.DrawChain(o.Preset, *o.Chain, o.Seed, uint64(i), uint64(copy))
	}
	return data.Draw(o.Preset, o.Seed, uint64(i), uint64(copy))
}

// Degrade makes the missing degraded copies of the kept pictures, or of those of the shard, on all processors.
func (s *Set) Degrade(ctx context.Context, o Degradation, progress Progress) error {
	if o.Copies == 0 {
		o.Copies = 1
	}
	if o.Copies < 0 || o.Copies > 1000 {
		return fmt.Errorf("copies: got %d, want 1 to 1000", o.Copies)
	}
	if len(s.selected) == 0 {
		return fmt.Errorf("%s: nothing is selected yet; run fluxgen select first", s.dir)
	}
	var jobs []degradedKey
	for _, i := range s.kept() {
		for c := range o.Copies {
			key := degradedKey{o.Preset, i, c}
			line, ok := s.degraded[key]
			if s.shard.has(i) && !(ok && line.Seed == o.Seed && s.exists(line.File)) {
				jobs = append(jobs, key)
			}
		}
	}
	progress.tell(stageDegrade, 0, len(jobs))
	done := 0
	return inOrder(ctx, len(jobs), func(k int) (Degraded, error) { return s.degrade(jobs[k], o) }, func(line Degraded) error {
		done++
		progress.tell(stageDegrade, done, len(jobs))
		key := degradedKey{o.Preset, line.Index, line.Copy}
		if old, ok := s.degraded[key]; ok && old.SHA256 == line.SHA256 && old.Seed == line.Seed {
			return nil // the file was missing, its line was there
		}
		return s.append(line)
	})
}

// degrade makes one copy.
func (s *Set) degrade(key degradedKey, o Degradation) (Degraded, error) {
	g := s.generated[key.index]
	line := Degraded{Stage: stageDegrade, Index: key.index, Copy: key.copy, File: fmt.Sprintf("lq/%s/%06d_%d.png", o.Preset, key.index, key.copy), Seed: o.Seed}
	img, err := s.picture(g.File, g.SHA256)
	if err != nil {
		return line, err
	}
	if line.Params, err = o.draw(key.index, key.copy); err != nil {
		return line, err
	}
	copied, err := line.Params.Apply(img)
	if err != nil {
		return line, err
	}
	if line.PSNR, err = data.PSNR(copied, img); err != nil {
		return line, err
	}
	if math.IsInf(line.PSNR, 1) {
		line.PSNR = 0
	}
	line.SHA256, err = s.savePicture(line.File, copied)
	return line, err
}

// inOrder calls work(0..n-1) on all processors and take with the results in order, until one fails or ctx ends.
func inOrder[T any](ctx context.Context, n int, work func(i int) (T, error), take func(T) error) error {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pending := make(chan chan result, runtime.GOMAXPROCS(0)) // one job a processor, and one whose result is taken
	go func() {
		defer close(pending)
		for i := range n {
			slot := make(chan result, 1)
			select {
			case pending <- slot:
			case <-ctx.Done():
				return
			}
			go func() {
				v, err := work(i)
				slot <- result{v, err}
			}()
		}
	}()
	var first error
	for slot := range pending {
		r := <-slot // also after a failure: no job may still write when this returns
		if first == nil {
			first = r.err
		}
		if first == nil {
			first = take(r.value)
		}
		if first != nil {
			cancel()
		}
	}
	if first == nil {
		first = ctx.Err()
	}
	return first
}
