package model_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/internal/testmodel"
	"github.com/fluxir/fluxir/pkg/model"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
	"github.com/fluxir/fluxir/pkg/train"
)

// An adapter with less routing is the full one with what it lacks set to zero: no SE layer is one with w2 = b2 = 0, no features are gain = 0. Outputs and the
// gradients of the shared parameters are the same bits, and a file brings the routing back.
func TestRouting(t *testing.T) {
	dir := t.TempDir()
	if err := testmodel.Write(dir, 0.5); err != nil {
		t.Fatal(err)
	}
	d, err := bindings.OpenDevice("cpu", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, r := range []model.Routing{
		{Broadcast: "all", SE: "none", Features: "image_text"}, {Broadcast: "all", SE: "double", Features: "image_text"},
		{Broadcast: "double", SE: "all", Features: "image_text"}, {Broadcast: "double", SE: "none", Features: "image"},
		{Broadcast: "all", SE: "all", Features: "image"}, {Broadcast: "all", SE: "none", Features: "image"},
	} {
		for _, recompute := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-%s-%s-%v", r.Broadcast, r.SE, r.Features, recompute), func(t *testing.T) {
				if err := d.Do(func() error { return checkRouting(t, d, dir, r, recompute) }); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func checkRouting(t *testing.T, d *bindings.Device, dir string, r model.Routing, recompute bool) error {
	a := tensor.NewArena(d)
	defer a.Free()
	less, err := routed(a, dir, r)
	if err != nil {
		return err
	}
	full, err := routed(a, dir, model.DefaultRouting())
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, p := range less.Net.Adapter.Params.List {
		kept[p.Name] = true
	}
	for _, p := range full.Net.Adapter.Params.List {
		layer := p.Name[:strings.LastIndexByte(p.Name, '.')+1]
		if strings.HasPrefix(p.Name, "se_") && !kept[p.Name] && (!kept[layer+"gain"] || strings.HasSuffix(p.Name, "2")) {
			if err := p.Set(make([]float32, p.Value.Len())); err != nil {
				return err
			}
		}
	}
	out, grads, err := evaluate(d, a, less, recompute)
	if err != nil {
		return err
	}
	want, wantGrads, err := evaluate(d, a, full, recompute)
	if err != nil {
		return err
	}
	if !slices.Equal(out, want) {
		t.Error("outputs differ")
	}
	for name, g := range grads {
		if !slices.Equal(g, wantGrads[name]) {
			t.Errorf("gradients of %s differ", name)
		}
	}
	if err := model.SaveBundle(dir+"/saved", less); err != nil {
		return err
	}
	again, err := model.LoadBundle(a, dir+"/saved", "", bindings.F32, bindings.F32)
	if err == nil && again.Net.Adapter.Config != less.Net.Adapter.Config {
		t.Errorf("loaded %+v, want %+v", again.Net.Adapter.Config, less.Net.Adapter.Config)
	}
	return err
}

// routed is the base in dir under a new adapter, whose gains are not zero; those of the same name are the same for every routing.
func routed(a *tensor.Arena, dir string, r model.Routing) (*model.Bundle, error) {
	b, err := model.LoadBase(a, dir, bindings.F32, bindings.F32)
	if err != nil {
		return nil, err
	}
	c := train.NanoAdapter()
	c.TextTokens, c.Routing = 4, r
	if b.Net.Adapter, err = model.NewAdapter(a, &b.Net.Base.Config, c, bindings.F32); err != nil {
		return nil, err
	}
	for _, p := range b.Net.Adapter.Params.List {
		stream := uint64(0)
		for _, c := range p.Name {
			stream = 31*stream + uint64(c)
		}
		values := make([]float32, p.Value.Len())
		bindings.PhiloxNormal(values, 7, stream, 0)
		for i := range values {
			values[i] *= 0.3
		}
		if err := errors.Join(p.Set(values), p.Train(a, false)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// evaluate is the velocity for fixed latents and the gradients of its mean square.
func evaluate(d *bindings.Device, a *tensor.Arena, b *model.Bundle, recompute bool) (out []float32, grads map[string][]float32, err error) {
	const batch, side = 2, 4
	b.Net.Recompute = recompute
	t := tensor.NewTape(d)
	defer t.Free()
	if err := tensor.ZeroGrad(d, b.Net.Adapter.Params.List); err != nil {
		return nil, nil, err
	}
	t.Record()
	noise := func(seed uint64) *tensor.Tensor {
		values := make([]float32, batch*side*side*48)
		bindings.PhiloxNormal(values, seed, 0, 0)
		return t.Upload(values, bindings.F32, batch, side*side, 48)
	}
	y := b.Net.Forward(t, model.Input{Z: noise(1), LQ: noise(2), Time: []float32{0.3, 1}, Rows: side, Columns: side, Lambda: 0.7})
	loss := t.FlowLoss(y.V, noise(3), noise(4))
	if err := t.BackwardFrom([]*tensor.Tensor{loss}, []*tensor.Tensor{t.Upload([]float32{1}, bindings.F32, 1)}); err != nil {
		return nil, nil, err
	}
	if out, err = y.V.Host(); err != nil {
		return nil, nil, err
	}
	grads = map[string][]float32{}
	for _, p := range b.Net.Adapter.Params.List {
		if grads[p.Name], err = p.Grad.Host(); err != nil {
			return nil, nil, err
		}
	}
	return out, grads, t.Err()
}

func TestRoutingRefused(t *testing.T) {
	for _, r := range []model.Routing{{}, {Broadcast: "all", SE: "some", Features: "image"}, {Broadcast: "none", SE: "all", Features: "image"}, {Broadcast: "all", SE: "all", Features: "text"}} {
		if err := r.Validate(); !errors.Is(err, weights.ErrConfig) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
