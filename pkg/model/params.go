// Package model has the networks of fluxir: the FLUX transformer, its autoencoder, the FluxIR adapter, and the sampler that restores
// with them. Everything comes from configuration; names, formulas and points of upcast follow
// black-forest-labs/flux; the adapter, the sampler and their symbols follow the specification of fluxir, cited as "spec §".
package model

import (
	"fmt"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Params are a network's weights, by fluxir's names and in order of execution.
type Params struct {
	List   []*tensor.Param
	byName map[string]*tensor.Param
	arena  *tensor.Arena
}

// newParams allocates parameters of the given shapes, contents undefined.
func newParams(a *tensor.Arena, specs []weights.Param, dtype bindings.DType) (*Params, error) {
	ps := &Params{byName: map[string]*tensor.Param{}, arena: a}
	for _, s := range specs {
		p, err := tensor.NewParam(a, s.Name, dtype, s.Shape...)
		if err != nil {
			return nil, err
		}
		ps.add(p)
	}
	return ps, nil
}

// streamedParams is newParams for an arena with slots: parameters of which group tells a number are streamed, those of one number together.
func streamedParams(a *tensor.Arena, specs []weights.Param, dtype bindings.DType, groups int, group func(name string) int) (*Params, *tensor.Stream, error) {
	sizes := make([]int64, groups)
	for _, s := range specs {
		if i := group(s.Name); i >= 0 {
			sizes[i] += tensor.ParamBytes(dtype, s.Shape...)
		}
	}
	stream, err := tensor.NewStream(a, sizes)
	if err != nil {
		return nil, nil, err
	}
	ps := &Params{byName: map[string]*tensor.Param{}, arena: a}
	for _, s := range specs {
		if i := group(s.Name); i >= 0 {
			ps.add(stream.NewParam(a, i, s.Name, dtype, s.Shape...))
			continue
		}
		p, err := tensor.NewParam(a, s.Name, dtype, s.Shape...)
		if err != nil {
			return nil, nil, err
		}
		ps.add(p)
	}
	return ps, stream, nil
}

func (ps *Params) add(p *tensor.Param) {
	ps.List = append(ps.List, p)
	ps.byName[p.Name] = p
}

// load fills the parameters from a file, converting to their dtype. The dry device holds no values: nothing is read for it.
func (ps *Params) load(src weights.Source, specs []weights.Param) error {
	if ps.arena.Dry() {
		return nil
	}
	for i, s := range specs {
		t, err := s.Load(src)
		if err != nil {
			return err
		}
		if err := setParam(ps.List[i], t); err != nil {
			return fmt.Errorf("%s: %s: %w", t.Path, s.Name, err)
		}
	}
	return nil
}

func setParam(p *tensor.Param, t weights.Tensor) error {
	if t.DType == weights.BF16 && p.Value.DType() == bindings.BF16 && !p.Trained() {
		return p.Value.SetRaw(t.Data)
	}
	values, err := weights.Float32s(t)
	if err != nil {
		return err
	}
	return p.Set(values)
}

// Get is the parameter called name; nil if there is none.
func (ps *Params) Get(name string) *tensor.Param { return ps.byName[name] }

// value is the working copy of a parameter that the network's own table lists.
func (ps *Params) value(name string) *tensor.Tensor {
	p := ps.byName[name]
	if p == nil {
		panic("model: no parameter " + name)
	}
	return p.Value
}

// linear is a layer y = x wᵀ + b.
type linear struct{ w, b *tensor.Tensor }

func (ps *Params) linear(name string) linear {
	return linear{ps.value(name + ".weight"), ps.value(name + ".bias")}
}

// rows is the part of a layer that makes outputs [low, high).
func (l linear) rows(low, high int) linear {
	return linear{l.w.Slice(0, low, high), l.b.Slice(0, low, high)}
}

func (l linear) forward(t *tensor.Tape, x *tensor.Tensor) *tensor.Tensor {
	return t.Linear(x, l.w, l.b)
}
