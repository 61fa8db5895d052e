package optest

import (
	"math"
	"strings"
	"testing"
	"unsafe"

	"github.com/fluxir/fluxir/bindings"
)

// double is an op made here, y = 2x on [3,5], through the host addresses of the CPU; spoil breaks it.
func double(spoil func(y, x []float32, row int)) Case {
	return Case{
		Op: "double", DType: bindings.F32,
		Args: []Arg{Out("y", bindings.F32, 3, 5).Alias("x"), In("x", bindings.F32, 3, 5)},
		Run: func(d *bindings.Device, t Tensors) error {
			for row := range 3 {
				y, x := hostRow(t["y"], row), hostRow(t["x"], row)
				for i := range 5 {
					y[i] = 2 * x[i]
				}
				if spoil != nil {
					spoil(y, x, row)
				}
			}
			return nil
		},
		Formula: func(p *Prec, v Values) {
			for i, x := range v["x"] {
				v["y"][i] = p.R(2 * x)
			}
		},
	}
}

// hostRow is a row of a [3,5] tensor and, where the padded variant has a gap, the eight bytes after it.
func hostRow(t *bindings.Tensor, row int) []float32 {
	return unsafe.Slice((*float32)(unsafe.Add(t.Data, 4*row*int(t.Strides[0]))), 7)
}

// TestHarness: the harness passes a right op and catches every kind of wrong one.
func TestHarness(t *testing.T) {
	calls := 0
	for name, test := range map[string]struct {
		spoil func(y, x []float32, row int)
		want  string
	}{
		"right":        {nil, ""},
		"wrong":        {func(y, _ []float32, _ int) { y[4] *= 1.0001 }, "max error"},
		"not written":  {func(y, _ []float32, row int) { y[row] = math.Float32frombits(sentinel<<16 | sentinel) }, "NaN"},
		"guard":        {func(y, _ []float32, row int) { y[5-row/2] = 0 }, "y: byte"},
		"input":        {func(_, x []float32, row int) { x[row] = 1 }, "x: byte"},
		"reads beyond": {func(y, x []float32, row int) { y[0] += x[6-row] }, "NaN"},
		"changes":      {func(y, _ []float32, _ int) { calls++; y[0] = math.Nextafter32(y[0], float32(calls%2)) }, "differ"},
	} {
		t.Run(name, func(t *testing.T) {
			err := harness(t, double(test.spoil), Variant{Name: "padded", padded: true})
			switch {
			case test.want == "" && err != "":
				t.Errorf("got %q", err)
			case !strings.Contains(err, test.want):
				t.Errorf("got %q, want %q in it", err, test.want)
			}
		})
	}
	if err := harness(t, double(nil), Variant{Name: "y is x", out: "y", in: "x"}); err != "" {
		t.Errorf("alias: %s", err)
	}
}

// harness runs a case twice and says what is wrong, "" for nothing.
func harness(t *testing.T, c Case, variant Variant) string {
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ref, err := NewReference(&c)
	if err != nil {
		return err.Error()
	}
	var outs [2]Values
	if err := d.Do(func() error { return runCase(d, ref, variant, outs[:]) }); err != nil {
		return err.Error()
	}
	if at := differs(outs[0], outs[1]); at != "" {
		return "differ: " + at
	}
	if _, err := ref.Check(outs[0]); err != nil {
		return err.Error()
	}
	return ""
}

// TestCeiling: a case whose naive program loses all digits is refused.
func TestCeiling(t *testing.T) {
	c := double(nil)
	c.Formula = func(p *Prec, v Values) {
		for i, x := range v["x"] {
			v["y"][i] = p.R(p.R(1e6+x) - 1e6)
		}
	}
	if _, err := NewReference(&c); err == nil || !strings.Contains(err.Error(), "ceiling") {
		t.Errorf("got %v", err)
	}
}

// TestWrongGradient: a factor in one element is seen.
func TestWrongGradient(t *testing.T) {
	forward := double(nil)
	for factor, wrong := range map[float64]bool{2: false, 2.001: true} {
		backward := Case{
			Op: "double_backward", DType: bindings.F32, Forward: &forward,
			Args: []Arg{Out("dx", bindings.F32, 3, 5), In("dy", bindings.F32, 3, 5)},
			Formula: func(p *Prec, v Values) {
				for i, dy := range v["dy"] {
					v["dx"][i] = p.R(2 * dy)
				}
				v["dx"][7] = p.R(factor * v["dy"][7])
			},
		}
		if err := CheckGradient(&backward); (err != nil) != wrong {
			t.Errorf("factor %v: %v", factor, err)
		}
	}
}

// TestRounding: every 16-bit pattern survives, and what lies between two neighbours goes to the nearer one, or to the even one from the middle.
func TestRounding(t *testing.T) {
	for _, dtype := range []bindings.DType{bindings.BF16, bindings.F16} {
		for u := range uint32(0x7bff) {
			x, next := decode(u, dtype), decode(u+1, dtype)
			if math.IsInf(next, 0) || math.IsNaN(next) {
				break
			}
			middle, even := (x+next)/2, u+u&1
			if encode(x, dtype) != u || encode(-x, dtype) != u|0x8000 || encode(middle, dtype) != even ||
				encode(0.75*x+0.25*next, dtype) != u || encode(0.25*x+0.75*next, dtype) != u+1 {
				t.Fatalf("%v %#x: %#x %#x %#x", dtype, u, encode(x, dtype), encode(-x, dtype), encode(middle, dtype))
			}
		}
		for _, x := range []float64{math.Inf(1), math.Inf(-1), math.NaN()} {
			if y := round(x, dtype); y != x && !(math.IsNaN(x) && math.IsNaN(y)) {
				t.Errorf("%v: %v became %v", dtype, x, y)
			}
		}
	}
}

// TestSumOrders: each order of the naive sum adds every term once.
func TestSumOrders(t *testing.T) {
	for n := range 40 {
		for order := range orders {
			p := &Prec{order: order}
			if got := p.Sum(n, func(i int) float64 { return float64(int(1) << (i % 20)) }); got != (&Prec{exact: true}).Sum(n, func(i int) float64 { return float64(int(1) << (i % 20)) }) {
				t.Errorf("n %d order %d: %v", n, order, got)
			}
		}
	}
}
