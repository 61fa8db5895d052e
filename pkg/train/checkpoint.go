package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
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

// Save writes the trainer's state, atomically: masters, moments, averages, step, configuration, a checksum of each tensor, the hash of the frozen weights.
// Random numbers and the order of the data need no state: they follow from seed and step. Tensors are brought from the device one at a time.
func (tr *Trainer) Save(path string) error {
	config, err := json.Marshal(tr.Config)
	if err != nil {
		return err
	}
	var entries []weights.Entry
	sums := map[string]string{}
	for _, p := range tr.params {
		for suffix, x := range states(p) {
			name := p.Name + "/" + suffix
			values, err := x.Host()
			if err != nil {
				return err
			}
			sums[name] = checksum(values)
			entries = append(entries, weights.Entry{Name: name, DType: weights.F32, Shape: p.Value.Shape(), Write: func(w io.Writer) error {
				values, err := x.Host()
				if err != nil {
					return err
				}
				return weights.Float32Entry(name, weights.F32, nil, values).Write(w)
			}})
		}
	}
	checksums, err := json.Marshal(sums)
	if err != nil {
		return err
	}
	if tr.frozenHash == "" {
		if tr.frozenHash, err = tr.FrozenHash(); err != nil {
			return err
		}
	}
	meta := map[string]string{
		"format_version": checkpointFormat, "training_step": strconv.FormatInt(tr.Step, 10), "config": string(config), "checksums": string(checksums),
		"frozen": tr.frozenHash, "data_manifest_sha256": tr.manifest,
	}
	if finite(tr.Gain) {
		meta["gain"] = strconv.FormatFloat(tr.Gain, 'g', -1, 64)
	}
	return weights.Write(path, entries, meta)
}

// checksum of a tensor's bytes in a state file: CRC-32C, hexadecimal.
func checksum(values []float32) string {
	h := crc32.New(castagnoli)
	hashFloats(h, values)
	return fmt.Sprintf("%08x", h.Sum32())
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
	if was := meta["data_manifest_sha256"]; was != tr.manifest {
		changed = append(changed, fmt.Sprintf("manifest of the data: SHA-256 %q there, %q now", was, tr.manifest))
	}
	step, err := strconv.ParseInt(meta["training_step"], 10, 64)
	if err != nil || step < 0 {
		return nil, fmt.Errorf("%s: %w: training_step %q", path, weights.ErrCorrupt, meta["training_step"])
	}
	if err := tr.sameBase(path, meta["frozen"]); err != nil {
		return nil, err
	}
	sums := map[string]string{} // states of before checksums have none
	if text := meta["checksums"]; text != "" {
		if err := json.Unmarshal([]byte(text), &sums); err != nil {
			return nil, fmt.Errorf("%s: %w: checksums: %w", path, weights.ErrCorrupt, err)
		}
	}
	for _, p := range tr.params {
		for suffix, x := range states(p) {
			if err := restore(f, p.Name+"/"+suffix, sums, x); err != nil {
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

// sameBase refuses a state that was trained on other frozen weights. Hashes of another precision tell nothing.
func (tr *Trainer) sameBase(path, stored string) (err error) {
	if tr.frozenHash, err = tr.FrozenHash(); err != nil {
		return err
	}
	dtype, _, _ := strings.Cut(stored, ":")
	if stored != "" && dtype == tr.Config.DType && stored != tr.frozenHash {
		return fmt.Errorf("%s: %w: state trained on another base: frozen weights %s there, %s now", path, ErrConfig, stored, tr.frozenHash)
	}
	return nil
}

// restore reads one tensor and holds it against its checksum, if there is one.
func restore(f *weights.File, name string, sums map[string]string, x *tensor.Tensor) error {
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
	if want, got := sums[name], checksum(values); want != "" && want != got {
		return fmt.Errorf("%s: %s: %w: checksum is %s, want %s: take an older state in its place", f.Path(), name, weights.ErrCorrupt, got, want)
	}
	return x.Set(values)
}
