package train

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
)

// save writes the last state, keeps a few before it, and exports the model.
func (r *runner) save(tr *Trainer, b *model.Bundle) error {
	stage := tr.Config.Stage
	if err := tr.Save(r.state(stage)); err != nil {
		return err
	}
	if err := r.keep(stage, tr.Step, tr.Config.Keep); err != nil {
		return err
	}
	b.Step, b.Licence, b.Data = fmt.Sprint(tr.Step), r.licence(), r.photos.manifest
	if err := r.export(stage, b); err != nil {
		return err
	}
	r.log.printParts(stage)
	if tr.latents != nil {
		r.log.Printf("%s: latents: %v\n", stage, tr.latents)
	}
	return r.log.writeLedger()
}

// keep gives the state just saved a second name, by its step, and removes the oldest such names but n besides it.
func (r *runner) keep(stage string, step int64, n int) error {
	if n > 0 {
		if err := link(r.state(stage), filepath.Join(r.s.Run, fmt.Sprintf("%s-%08d.state.safetensors", stage, step))); err != nil {
			return err
		}
	}
	kept, err := filepath.Glob(filepath.Join(r.s.Run, stage+"-[0-9]*.state.safetensors"))
	if err != nil {
		return err
	}
	slices.Sort(kept)
	for i := range len(kept) - n - 1 {
		if err := os.Remove(kept[i]); err != nil {
			return err
		}
	}
	return nil
}

// link gives a file a second name, which may exist; where the file system cannot, it copies.
func link(from, to string) error {
	temporary := to + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, temporary) != nil {
		all, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return data.WriteFile(to, all)
	}
	return os.Rename(temporary, to)
}

// validate restores the held-out crops, records gains and pictures, and saves the state that is better than all before it.
func (r *runner) validate(tr *Trainer, held *Validation, best *float64) error {
	gains, samples, err := tr.Gains(held)
	if err != nil {
		return err
	}
	tr.Gain = mean(gains)
	stage := tr.Config.Stage
	if err := r.log.Write(Record{Stage: stage, Step: tr.Step, Gains: gains, Kinds: held.kinds}); err != nil {
		return err
	}
	folder := filepath.Join(r.s.Run, "samples")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for i, m := range samples {
		var b bytes.Buffer
		if err := data.Encode(&b, m, data.SaveOptions{Format: data.FormatPNG}); err != nil {
			return err
		}
		name := fmt.Sprintf("%s-%s-%08d.png", stage, held.kinds[i], tr.Step)
		if err := data.WriteFile(filepath.Join(folder, name), b.Bytes()); err != nil {
			return err
		}
		if err := r.log.board.Picture(tr.Step, stage+"/samples/"+held.kinds[i], m.W, m.H, b.Bytes()); err != nil {
			return err
		}
	}
	if tr.Gain <= *best {
		return nil
	}
	*best = tr.Gain
	return tr.Save(r.best(stage))
}

// bestGain reads the gain of the best state so far; without one it is -Inf.
func bestGain(path string) float64 {
	f, err := weights.Open(path)
	if err != nil {
		return math.Inf(-1)
	}
	defer f.Close()
	gain, err := strconv.ParseFloat(f.Metadata()["gain"], 64)
	if err != nil {
		return math.Inf(-1)
	}
	return gain
}
