package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// checkpointFormat is the version of the state files.
const checkpointFormat = "1"

// states are the F32 tensors of a trained parameter in a checkpoint, by suffix of the parameter's name.
func states(p *tensor.Param) map[string]*tensor.Tensor {
	s := map[string]*tensor.Tensor{"master": p.Master, "m": p.Moment1, "v": p.Moment2}
	if p.EMA != nil {
		s["ema"] = p.EMA
	}
	return s
}

// Save writes the trainer's state, atomically: masters, moments, averages, step and configuration. Random numbers need no state: they follow from seed and
// step.
func (tr *Trainer) Save(path string) error {
	config, err := json.Marshal(tr.Config)
	if err != nil {
		return err
	}
	var entries []weights.Entry
	for _, p := range tr.params {
		all := states(p)
		for _, suffix := range slices.Sorted(maps.Keys(all)) {
			values, err := all[suffix].Host()
			if err != nil {
				return err
			}
			entries = append(entries, weights.Float32Entry(p.Name+"/"+suffix, weights.F32, p.Value.Shape(), values))
		}
	}
	return weights.Write(path, entries, map[string]string{
		"format_version": checkpointFormat, "training_step": strconv.FormatInt(tr.Step, 10), "config": string(config),
	})
}

// Resume reads a state written by Save for the same parameters, and returns the keys of the configuration that have changed since. A missing file is not an
// error: nothing is read. Keys that say what is learned from what must be the same; a larger Steps continues a finished run.
func (tr *Trainer) Resume(path string) (changed []string, err error) {
	f, err := weights.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	meta := f.Metadata()
	fixed, changed, err := tr.Config.differences([]byte(meta["config"]))
	if err != nil || meta["format_version"] != checkpointFormat {
		return nil, fmt.Errorf("%s: %w: not a training state of format %s", path, weights.ErrCorrupt, checkpointFormat)
	}
	if len(fixed) > 0 {
		return nil, fmt.Errorf("%s: %w: state of another configuration: %s", path, ErrConfig, strings.Join(fixed, "; "))
	}
	step, err := strconv.ParseInt(meta["training_step"], 10, 64)
	if err != nil || step < 0 {
		return nil, fmt.Errorf("%s: %w: training_step %q", path, weights.ErrCorrupt, meta["training_step"])
	}
	for _, p := range tr.params {
		for suffix, x := range states(p) {
			if err := restore(f, p.Name+"/"+suffix, x); err != nil {
				return nil, err
			}
		}
		values, err := p.Master.Host()
		if err != nil {
			return nil, err
		}
		if err := p.Value.Set(values); err != nil {
			return nil, err
		}
	}
	tr.Step = step
	return changed, nil
}

func restore(f *weights.File, name string, x *tensor.Tensor) error {
	t, err := f.Tensor(name)
	if err != nil {
		return err
	}
	if !slices.Equal(t.Shape, x.Shape()) {
		return fmt.Errorf("%s: %s: %w: got %v, want %v", f.Path(), name, weights.ErrShape, t.Shape, x.Shape())
	}
	values, err := weights.Float32s(t)
	if err != nil {
		return err
	}
	return x.Set(values)
}
