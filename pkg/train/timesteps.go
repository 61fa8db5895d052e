package train

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/fluxir/fluxir/pkg/model"
)

// Kinds of TimeSampling, the densities of Esser et al. 2024 (arXiv 2403.03206, section 3.1).
const (
	LogitNormal = "logit_normal" // sigmoid(m + s·n), n ~ N(0, 1)
	Uniform     = "uniform"      // u ~ U(0, 1)
	Mode        = "mode"         // 1 - u - s·(cos²(πu/2) - 1 + u)
)

// TimeSampling says how training times are drawn; t = 1 is noise, t = 0 is data. The zero value is a logit-normal with m = 0, s = 1, without shift.
type TimeSampling struct {
	Kind     string  `json:"kind" toml:"kind"`         // "" is LogitNormal
	Location float64 `json:"location" toml:"location"` // m, of LogitNormal only
	Scale    float64 `json:"scale" toml:"scale"`       // s; 0 is the kind's default: 1 for LogitNormal, 1.29 for Mode
	Shift    bool    `json:"shift" toml:"shift"`       // apply the resolution shift, whatever the kind
	AtOne    float64 `json:"at_one" toml:"at_one"`     // share of items, 0 to 1, whose time is exactly 1: a model that restores in one step from noise is trained there
}

// maxModeScale is the largest s for which Mode's map of u is monotone, and so a density.
const maxModeScale = 2 / (math.Pi - 2)

// Validate returns an error naming the first field that is out of range.
func (s TimeSampling) Validate() error {
	switch s.Kind {
	case "", LogitNormal:
		if !(s.Scale >= 0) || math.IsInf(s.Scale, 0) || math.IsNaN(s.Location) || math.IsInf(s.Location, 0) {
			return fmt.Errorf("time sampling: location %v, scale %v, want finite and scale >= 0", s.Location, s.Scale)
		}
	case Uniform:
	case Mode:
		if !(s.Scale >= -1 && s.Scale <= maxModeScale) {
			return fmt.Errorf("time sampling: scale %v of kind %q, want -1 to %.4f", s.Scale, s.Kind, maxModeScale)
		}
	default:
		return fmt.Errorf("time sampling: kind %q, want %q, %q or %q", s.Kind, LogitNormal, Uniform, Mode)
	}
	if !(s.AtOne >= 0 && s.AtOne <= 1) {
		return fmt.Errorf("time sampling: at_one %v, want 0 to 1", s.AtOne)
	}
	return nil
}

// Draw returns n training times. mu is the resolution shift for the batch's image tokens ([model.ShiftMu]), used if Shift is set.
// Every item takes two words of src, whatever the kind, so that a run can be resumed by position.
func (s TimeSampling) Draw(src rand.Source, n int, mu float64) []float32 {
	times := make([]float32, n)
	for i := range times {
		pin, u := uniform(src), uniform(src)
		if pin < s.AtOne {
			times[i] = 1
		} else {
			times[i] = float32(s.at(u, mu))
		}
	}
	return times
}

// at maps u ~ U(0, 1) to a time with the wanted density; it is monotone in u.
func (s TimeSampling) at(u, mu float64) float64 {
	var t float64
	switch s.Kind {
	case Uniform:
		t = u
	case Mode:
		scale := s.Scale
		if scale == 0 {
			scale = 1.29
		}
		c := math.Cos(math.Pi * u / 2)
		t = 1 - u - scale*(c*c-1+u)
	default:
		scale := s.Scale
		if scale == 0 {
			scale = 1
		}
		normal := math.Sqrt2 * math.Erfinv(2*u-1)
		t = 1 / (1 + math.Exp(-(s.Location + scale*normal)))
	}
	if s.Shift {
		t = model.Shift(mu, t)
	}
	return t
}

// uniform returns a number in the open interval (0, 1): (x + 0.5)/2^52 with 52 bits, so that neither end can be reached by rounding.
func uniform(src rand.Source) float64 {
	return (float64(src.Uint64()>>12) + 0.5) * 0x1p-52
}
