package train

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"
	"time"

	"github.com/fluxir/fluxir/pkg/tensor"
)

// group are trained parameters that are watched, and may learn, apart from the others.
type group struct {
	name   string
	rate   float64 // factor on the learning rate
	params []*tensor.Param
}

// makeGroups sorts the trained parameters: base, and of the adapter theta (learned text), se (squeeze and excitation), block (the rest).
func (tr *Trainer) makeGroups() []group {
	of := map[*tensor.Param]bool{}
	for _, p := range tr.net.Base.Params.List {
		of[p] = true
	}
	groups := []group{{name: "base", rate: 1}, {name: "block", rate: 1}, {name: "theta", rate: tr.Config.LRTheta}, {name: "se", rate: tr.Config.LRSE}}
	for _, p := range tr.params {
		i := 1
		switch {
		case of[p]:
			i = 0
		case strings.HasPrefix(p.Name, "theta_"):
			i = 2
		case strings.HasPrefix(p.Name, "se_"):
			i = 3
		}
		groups[i].params = append(groups[i].params, p)
	}
	var used []group
	for _, g := range groups {
		if len(g.params) > 0 {
			used = append(used, g)
		}
	}
	return used
}

// masters are the values of the group's parameters.
func (g group) masters() (values [][]float32, err error) {
	for _, p := range g.params {
		v, err := p.Master.Host()
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

// change is the norm of the difference to earlier values, as a share of their norm.
func (g group) change(before [][]float32) (float64, error) {
	moved, size := 0.0, 0.0
	for i, p := range g.params {
		now, err := p.Master.Host()
		if err != nil {
			return 0, err
		}
		for k, v := range before[i] {
			d := float64(now[k] - v)
			moved, size = moved+d*d, size+float64(v)*float64(v)
		}
	}
	return math.Sqrt(moved / max(size, 1e-30)), nil
}

func finite(v float64) bool { return v-v == 0 }

// notFinite finds the tensor where a step went wrong, in the order of the data: weights, latents, activations, gradients. The weights have not been changed.
func (tr *Trainer) notFinite(what string, out StepOutput) error {
	where, err := tr.firstNotFinite(out)
	if err != nil {
		return err
	}
	return fmt.Errorf("train: step %d: %s is not finite; first in %s; the last state is intact", tr.Step+1, what, where)
}

func (tr *Trainer) firstNotFinite(out StepOutput) (string, error) {
	for _, p := range append(tr.frozen(), tr.params...) {
		if ok, err := p.Value.Finite(); err != nil || !ok {
			return "weight " + p.Name, err
		}
	}
	for i, x := range []*tensor.Tensor{out.Z0, out.ZLQ} {
		if x == nil {
			continue
		}
		if ok, err := x.Finite(); err != nil || !ok {
			return []string{"latent z_0", "latent z_lq"}[i], err
		}
	}
	if where, err := tr.tape.FirstNotFinite(); err != nil || where != "" {
		return where, err
	}
	for _, p := range tr.params {
		if ok, err := p.Grad.Finite(); err != nil || !ok {
			return "gradient of " + p.Name, err
		}
	}
	return "no tensor: a sum over finite ones is out of range", nil
}

// frozen are the parameters that the step reads and must not change.
func (tr *Trainer) frozen() []*tensor.Param {
	all := append([]*tensor.Param(nil), tr.net.Base.Params.List...)
	if tr.net.Adapter != nil {
		all = append(all, tr.net.Adapter.Params.List...)
	}
	var list []*tensor.Param
	for _, p := range append(all, tr.vae.Params.List...) {
		if !p.Trained() {
			list = append(list, p)
		}
	}
	return list
}

// FrozenHash is the dtype and the SHA-256 of names and values of the frozen weights: the same at the end as at the start, and in every run on the same base.
func (tr *Trainer) FrozenHash() (string, error) {
	sum, err := hashParams(tr.frozen())
	return tr.Config.DType + ":" + sum, err
}

// hashParams is the SHA-256 of names and values, of trained parameters the masters'.
func hashParams(params []*tensor.Param) (string, error) {
	h := sha256.New()
	for _, p := range params {
		io.WriteString(h, p.Name)
		x := p.Value
		if p.Trained() {
			x = p.Master
		}
		values, err := x.Host()
		if err != nil {
			return "", err
		}
		hashFloats(h, values)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// hashFloats feeds the little-endian bytes of values to h.
func hashFloats(h hash.Hash, values []float32) {
	buffer := make([]byte, 0, 1<<14)
	for len(values) > 0 {
		n := min(len(values), cap(buffer)/4)
		buffer = buffer[:0]
		for _, v := range values[:n] {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(v))
		}
		h.Write(buffer)
		values = values[n:]
	}
}

// parts are what the time of a step goes to, in order; the last three happen between steps.
var parts = []string{"data", "encode", "forward", "pixel", "backward", "reduce", "optimizer", "logging", "validation", "saving"}

// stopwatch adds up the time of parts.
type stopwatch struct {
	last  time.Time
	spent map[string]float64
}

func newStopwatch() stopwatch { return stopwatch{time.Now(), map[string]float64{}} }

// lap books the time since the lap before to a part.
func (s *stopwatch) lap(part string) {
	now := time.Now()
	s.spent[part] += now.Sub(s.last).Seconds()
	s.last = now
}

// take returns the seconds by part and starts anew.
func (s *stopwatch) take() map[string]float64 {
	spent := s.spent
	s.spent = map[string]float64{}
	return spent
}
