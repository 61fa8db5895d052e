package tensor

import (
	"math"
	"slices"
	"testing"

	"github.com/fluxir/fluxir/bindings"
)

func onTape(t *testing.T, f func(a *Arena, tp *Tape)) {
	t.Helper()
	d, err := bindings.OpenDevice("cpu", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_ = d.Do(func() error {
		a, tp := NewArena(d), NewTape(d)
		defer a.Free()
		defer tp.Free()
		f(a, tp)
		return nil
	})
}

func ramp(n int, scale float64) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(scale * math.Sin(float64(3*i+1)))
	}
	return v
}

func host(t *testing.T, x *Tensor) []float32 {
	t.Helper()
	v, err := x.Host()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func gradOf(t *testing.T, x *Tensor) []float32 {
	t.Helper()
	v, err := x.Grad()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// block is a small network with everything the tape has to get right: views of a joint buffer, a tensor with three consumers, a gated residual.
func block(tp *Tape, x, shift, scale, gate *Tensor) *Tensor {
	y := tp.AdaLN(x, shift, scale, 1e-6)
	joint := tp.New(x.DType(), x.Dim(0), x.Dim(1), 2*x.Dim(2))
	c := x.Dim(2)
	tp.ActTo(joint.Slice(2, 0, c), y, bindings.ActGELUTanh)
	tp.ActTo(joint.Slice(2, c, 2*c), y, bindings.ActSiLU)
	sum := tp.Add(joint.Slice(2, 0, c), joint.Slice(2, c, 2*c))
	sum = tp.Add(sum, tp.Copy(joint.Slice(1, 0, x.Dim(1)).Slice(2, 0, c)))
	return tp.Gate(x, gate, sum, 0.5)
}

// lossOf runs the network on host values and returns the loss; with grads also the inputs' gradients.
func lossOf(t *testing.T, tp *Tape, in [4][]float32, checkpoint, grads bool) (float64, [4][]float32) {
	tp.Reset()
	if grads {
		tp.Record()
	}
	var x [4]*Tensor
	for i, shape := range [][]int{{2, 3, 5}, {2, 5}, {2, 5}, {2, 5}} {
		x[i] = tp.Input(tp.Upload(in[i], bindings.F32, shape...))
	}
	var y *Tensor
	if checkpoint {
		y = x[0]
		for range 2 {
			y = tp.Checkpoint([]*Tensor{y, x[1], x[2], x[3]}, func(in []*Tensor) []*Tensor {
				return []*Tensor{block(tp, in[0], in[1], in[2], in[3])}
			})[0]
		}
	} else {
		y = block(tp, block(tp, x[0], x[1], x[2], x[3]), x[1], x[2], x[3])
	}
	target := tp.Upload(ramp(30, 2), bindings.F32, 2, 3, 5)
	loss := tp.PixelLoss(y, target, nil, bindings.DistanceL2)
	value := float64(host(t, loss)[0])
	var out [4][]float32
	if grads {
		if err := tp.Backward(loss); err != nil {
			t.Fatal(err)
		}
		for i := range x {
			out[i] = gradOf(t, x[i])
		}
	}
	return value, out
}

func TestGradientsAgainstDifferences(t *testing.T) {
	onTape(t, func(_ *Arena, tp *Tape) {
		in := [4][]float32{ramp(30, 1), ramp(10, 0.3), ramp(10, 0.2), ramp(10, 0.7)}
		_, plain := lossOf(t, tp, in, false, true)
		_, checkpointed := lossOf(t, tp, in, true, true)
		for i := range in {
			for j := range in[i] {
				const h = 1e-2
				moved := func(d float32) float64 {
					saved := in[i][j]
					in[i][j] += d
					v, _ := lossOf(t, tp, in, false, false)
					in[i][j] = saved
					return v
				}
				want := (8*(moved(h)-moved(-h)) - (moved(2*h) - moved(-2*h))) / (12 * h)
				// Fourth-order differences in f32: rounding of a loss of order 1 is 1e-7/h, the truncation h⁴ is below that.
				if got := float64(plain[i][j]); math.Abs(got-want) > 1e-4 {
					t.Errorf("input %d[%d]: gradient %g, differences say %g", i, j, got, want)
				}
				if plain[i][j] != checkpointed[i][j] {
					t.Errorf("input %d[%d]: checkpointed gradient %g, plain %g", i, j, checkpointed[i][j], plain[i][j])
				}
			}
		}
	})
}

func TestSteadyStepAllocatesNothing(t *testing.T) {
	onTape(t, func(_ *Arena, tp *Tape) {
		in := [4][]float32{ramp(30, 1), ramp(10, 0.3), ramp(10, 0.2), ramp(10, 0.7)}
		var first []float32
		var bytes int64
		for i := range 3 {
			_, g := lossOf(t, tp, in, i%2 == 1, true)
			info, err := tp.Device().Info()
			if err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				first, bytes = g[0], info.Allocated
			}
			if i == 2 && (info.Allocated != bytes || !slices.Equal(first, g[0])) {
				t.Errorf("third step: %d bytes allocated, second had %d; same gradients: %v", info.Allocated, bytes, slices.Equal(first, g[0]))
			}
		}
	})
}

func TestErrorsStick(t *testing.T) {
	onTape(t, func(_ *Arena, tp *Tape) {
		x := tp.Upload(ramp(30, 1), bindings.F32, 2, 3, 5)
		bad := tp.Gate(x, tp.Upload(ramp(8, 1), bindings.F32, 2, 4), x, 1)
		after := tp.Act(bad, bindings.ActSiLU)
		if after.Dim(2) != 5 {
			t.Errorf("shape after an error: %v", after.Shape())
		}
		if err := tp.Err(); err == nil || err.Error() != "gate: gate_forward: gate: shape: got [2,4] want [2,5]" {
			t.Errorf("Err() = %v", err)
		}
		if tp.Backward(tp.New(bindings.F32, 1)) == nil {
			t.Error("Backward of a failed tape succeeded")
		}
		tp.Reset()
		if tp.Err() != nil {
			t.Error("Reset kept the error")
		}
	})
}

func TestViews(t *testing.T) {
	onTape(t, func(_ *Arena, tp *Tape) {
		values := ramp(2*3*8, 1)
		x := tp.Upload(values, bindings.F32, 2, 3, 8)
		v := x.Slice(1, 1, 3).Slice(2, 4, 8).View(2, 2, 2, 2)
		got := host(t, v)
		for i, want := range []int{12, 13, 14, 15, 20, 21, 22, 23, 36, 37, 38, 39, 44, 45, 46, 47} {
			if got[i] != values[want] {
				t.Fatalf("element %d of the view is %g, want element %d of the tensor", i, got[i], want)
			}
		}
		for name, f := range map[string]func(){
			"slice after view": func() { v.Slice(1, 0, 1) },
			"impossible view":  func() { x.Slice(2, 0, 4).View(2, 12) },
			"wrong size":       func() { x.View(7) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: no panic", name)
					}
				}()
				f()
			}()
		}
	})
}

func TestBoxMinus(t *testing.T) {
	b := fullBox([]int{4, 5, 6})
	hole := box{rank: 3, low: [maxRank]int{1, 0, 2}, size: [maxRank]int{2, 3, 4}}
	volume := func(boxes []box) (n int) {
		for _, b := range boxes {
			n += b.size[0] * b.size[1] * b.size[2]
		}
		return n
	}
	parts := b.minus(hole)
	if volume(parts) != 4*5*6-2*3*4 {
		t.Errorf("volume of the rest %d", volume(parts))
	}
	for i, p := range parts {
		if p.overlapsAny(append(slices.Clone(parts[:i]), hole)) {
			t.Errorf("part %d overlaps", i)
		}
	}
	if rest := b.uncovered(append(parts, hole)); len(rest) != 0 {
		t.Errorf("uncovered: %v", rest)
	}
}

// A parameter's gradient is announced when nothing more will be added to it: the value then is the value at the end. It is announced once, also where it is read
// twice and inside checkpoints; one that is not read is not.
func TestOnGrad(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		onTape(t, func(a *Arena, tp *Tape) {
			var params []*Param
			for _, name := range []string{"first", "shared", "last", "unread"} {
				p, err := NewParam(a, name, bindings.F32, 4, 4)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.Set(ramp(16, 0.3)); err != nil {
					t.Fatal(err)
				}
				if err := p.Train(a, false); err != nil {
					t.Fatal(err)
				}
				params = append(params, p)
			}
			var order []string
			then := map[string][]float32{}
			tp.OnGrad(func(p *Param) {
				order = append(order, p.Name)
				then[p.Name] = host(t, p.Grad)
			})
			for range 2 { // the second step must not remember the first
				order = nil
				if err := ZeroGrad(tp.Device(), params); err != nil {
					t.Fatal(err)
				}
				tp.Reset()
				tp.Record()
				x := tp.Upload(ramp(12, 1), bindings.F32, 3, 4)
				layer := func(x *Tensor, ps ...*Param) *Tensor {
					body := func(in []*Tensor) []*Tensor {
						y := in[0]
						for _, p := range ps {
							y = tp.LinearAct(y, p.Value, nil, bindings.ActSiLU)
						}
						return []*Tensor{y}
					}
					if checkpoint {
						return tp.Checkpoint([]*Tensor{x}, body)[0]
					}
					return body([]*Tensor{x})[0]
				}
				y := layer(layer(layer(x, params[0]), params[1]), params[1], params[2])
				cotangent := tp.Upload(ramp(12, 1), bindings.F32, 3, 4)
				if err := tp.BackwardFrom([]*Tensor{y}, []*Tensor{cotangent}); err != nil {
					t.Fatal(err)
				}
			}
			if want := []string{"last", "shared", "first"}; !slices.Equal(order, want) {
				t.Errorf("checkpoint %v: order %v, want %v", checkpoint, order, want)
			}
			for _, p := range params[:3] {
				if !slices.Equal(then[p.Name], host(t, p.Grad)) {
					t.Errorf("checkpoint %v: gradient of %s was announced before it was complete", checkpoint, p.Name)
				}
			}
		})
	}
}
