package train

import (
	"math"
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// InitBase gives a transformer its first weights: matrices N(0, 1/in), norms 1, biases 0; modulations and the output layer 0, so that every block starts as
// the identity and the output as 0.
func InitBase(f *model.Flux, seed uint64) error {
	for i, p := range f.Params.List {
		zero := strings.Contains(p.Name, "mod.lin") || strings.Contains(p.Name, "modulation") || strings.HasPrefix(p.Name, "final_layer.linear")
		if err := initParam(p, zero, seed, uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// InitAdapter gives an adapter its first weights as spec §3 says: W_lq a copy of img_in's, the block a copy of the base's first double block, theta N(0, 0.02²),
// gains 0, the SE layers' matrices N(0, 1/in).
func InitAdapter(ad *model.Adapter, base *model.Flux, seed uint64) error {
	for i, p := range ad.Params.List {
		var err error
		switch {
		case p.Name == "lq_in.weight":
			err = copyParam(p, base.Params.Get("img_in.weight"))
		case strings.HasPrefix(p.Name, "block."):
			err = copyParam(p, base.Params.Get("double_blocks.0."+strings.TrimPrefix(p.Name, "block.")))
		case strings.HasPrefix(p.Name, "theta_"):
			err = p.Set(normals(p.Value.Len(), 0.02, seed, uint64(i)))
		default:
			err = initParam(p, strings.HasSuffix(p.Name, ".gain"), seed, uint64(i))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func initParam(p *tensor.Param, zero bool, seed, stream uint64) error {
	shape := p.Value.Shape()
	switch {
	case zero || (len(shape) == 1 && !strings.HasSuffix(p.Name, ".scale")):
		return p.Set(make([]float32, p.Value.Len()))
	case len(shape) == 1: // norm scales
		return p.Set(mapped(make([]float32, shape[0]), func(float32) float32 { return 1 }))
	}
	return p.Set(normals(p.Value.Len(), 1/math.Sqrt(float64(shape[len(shape)-1])), seed, stream))
}

func normals(n int, deviation float64, seed, stream uint64) []float32 {
	values := make([]float32, n)
	bindings.PhiloxNormal(values, seed, stream, 0)
	return mapped(values, func(v float32) float32 { return v * float32(deviation) })
}

func copyParam(to, from *tensor.Param) error {
	values, err := from.Value.Host()
	if err != nil {
		return err
	}
	return to.Set(values)
}
