package model

import (
	"cmp"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/model/weights"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// onDevice runs f on the device of FLUXIR_DEVICE, or the CPU, with the weights' arena having slots.
func onDevice(t *testing.T, slots int, f func(a *tensor.Arena, tp *tensor.Tape) error) {
	t.Helper()
	d, err := bindings.OpenDevice(cmp.Or(os.Getenv("FLUXIR_DEVICE"), "cpu"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		a, tp := tensor.NewArena(d), tensor.NewTape(d)
		a.Slots = slots
		defer a.Free()
		defer tp.Free()
		return f(a, tp)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// likeFlux changes tinyModel to what FLUX.1 is: velocities, guidance, several blocks of both kinds.
func likeFlux(c *weights.FluxConfig) {
	c.NumLayers, c.NumSingleLayers, c.Prediction, c.LQSkip, c.GuidanceEmbeds = 2, 3, weights.PredictVelocity, false, true
}

func normal(n int, stream uint64) []float32 {
	values := make([]float32, n)
	bindings.PhiloxNormal(values, 9, stream, 0)
	return values
}

// streamedStep is the output and all gradients of the adapter for one training step on a frozen base, and then the output of a plain evaluation.
func streamedStep(t *testing.T, slots int, dtype bindings.DType, recompute bool) (values []float32) {
	t.Helper()
	onDevice(t, slots, func(a *tensor.Arena, tp *tensor.Tape) error {
		m, err := tinyModel(a, dtype, 0.1, likeFlux)
		if err != nil {
			return err
		}
		m.Recompute = recompute
		if err := trainAll(a, m.Adapter.Params); err != nil {
			return err
		}
		if slots > 0 {
			if err := m.Base.Params.List[len(m.Base.Params.List)/2].Train(a, false); err == nil {
				t.Error("a streamed parameter can be trained")
			}
		}
		read := func(x *tensor.Tensor) {
			values = append(values, host(t, x)...)
		}
		evaluate := func() *tensor.Tensor {
			const n = 2 * 6 * 48
			in := Input{
				Z: tp.Upload(normal(n, 1), bindings.F32, 2, 6, 48), LQ: tp.Upload(normal(n, 2), bindings.F32, 2, 6, 48), Time: []float32{0.7, 0.3},
				Guidance: []float32{3.5, 2}, Rows: 3, Columns: 2, Lambda: 1,
			}
			return m.Forward(tp, in).V
		}
		tp.Record()
		v := evaluate()
		read(v)
		if err := tp.BackwardFrom([]*tensor.Tensor{v}, []*tensor.Tensor{tp.Upload(normal(v.Len(), 3), bindings.F32, v.Shape()...)}); err != nil {
			return err
		}
		for _, p := range m.Adapter.Params.List {
			read(p.Grad)
		}
		for range 2 {
			tp.Reset()
			read(evaluate())
		}
		return tp.Err()
	})
	return values
}

// Weights that pass through slots give the same bits as weights that are there: forward, on the way back with and without recomputation, and in one
// evaluation after the other.
func TestStream(t *testing.T) {
	for _, dtype := range []bindings.DType{bindings.F32, bindings.BF16} {
		for _, recompute := range []bool{false, true} {
			want := streamedStep(t, 0, dtype, recompute)
			if slices.ContainsFunc(want, func(v float32) bool { return math.IsNaN(float64(v)) }) || slices.Max(want) == 0 {
				t.Fatal("the model's output and gradients show nothing")
			}
			for _, slots := range []int{2, 3} {
				if got := streamedStep(t, slots, dtype, recompute); !slices.Equal(got, want) {
					t.Errorf("%v, recompute %v: %d slots give other bits", dtype, recompute, slots)
				}
			}
		}
	}
}

// Streamed parameters are read back from host memory and can be set again between evaluations.
func TestStreamedParams(t *testing.T) {
	onDevice(t, 2, func(a *tensor.Arena, tp *tensor.Tape) error {
		m, err := tinyModel(a, bindings.BF16, 1, likeFlux)
		if err != nil {
			return err
		}
		forward := func() []float32 {
			tp.Reset()
			x := tp.Upload(normal(6*48, 1), bindings.F32, 1, 6, 48)
			return host(t, m.Forward(tp, Input{Z: x, LQ: x, Time: []float32{0.5}, Guidance: []float32{1}, Rows: 3, Columns: 2, Lambda: 1}).V)
		}
		before := forward()
		for _, name := range []string{"double_blocks.0.img_mlp.2.weight", "single_blocks.2.linear2.weight"} {
			p := m.Base.Params.Get(name)
			values := host(t, p.Value)
			old := slices.Clone(values)
			for i := range values {
				values[i] = -values[i]
			}
			if err := p.Set(values); err != nil {
				return err
			}
			if got := forward(); slices.Equal(got, before) {
				t.Errorf("%s: setting it changes nothing", name)
			}
			if err := p.Set(old); err != nil {
				return err
			}
			if got := forward(); !slices.Equal(got, before) {
				t.Errorf("%s: setting it back does not bring back the output", name)
			}
		}
		return tp.Err()
	})
}

// Evaluations recorded as graphs give the bits of plain ones, over steps and tiles, with other work of the tape between them.
func TestGraphs(t *testing.T) {
	for _, dtype := range []bindings.DType{bindings.F32, bindings.BF16} {
		for name, change := range map[string]func(c *weights.FluxConfig){"flux": likeFlux, "nano": func(c *weights.FluxConfig) { c.LQSkip = false }} {
			run := func(graphs *tensor.Graphs) (values []float32) {
				onDevice(t, 0, func(a *tensor.Arena, tp *tensor.Tape) error {
					m, err := tinyModel(a, dtype, 0.1, change)
					if err != nil {
						return err
					}
					times := []float64{1, 0.8, 0.4, 0}
					for step := range 3 {
						for tile := range 4 {
							tp.Reset()
							n := 1 + tile/3 // the last batch is another shape
							z, lq := normal(n*4*6*12, uint64(10*step+tile)), normal(n*4*6*12, uint64(100+tile))
							o := SampleOptions{Lambda: 1, Guidance: float32(step), Graphs: graphs}
							out := m.Euler(tp, tp.Upload(z, bindings.F32, n, 4, 6, 12), tp.Upload(lq, bindings.F32, n, 4, 6, 12), times[step], times[step+1], o)
							if err := tp.Err(); err != nil {
								return err
							}
							values = append(values, host(t, out)...)
							tp.Scope(func() []*tensor.Tensor { return []*tensor.Tensor{tp.Add(out, out)} })
						}
						if step == 1 { // memory that moves makes recordings void
							graphs.Free()
							tp.Free()
						}
					}
					graphs.Free()
					return tp.Err()
				})
				return values
			}
			graphs := &tensor.Graphs{}
			if got, want := run(graphs), run(nil); !slices.Equal(got, want) {
				t.Errorf("%s, %v: graphs give other bits", name, dtype)
			}
			if cuda := os.Getenv("FLUXIR_DEVICE") == "cuda"; cuda != (graphs.Replays > 0) {
				t.Errorf("%s, %v: %d evaluations were one call", name, dtype, graphs.Replays)
			}
		}
	}
}
