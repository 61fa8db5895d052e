package optest

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/fluxir/fluxir/bindings"
)

// Reference is what a case's outputs are held against: the float64 values and the naive program's distance from them.
type Reference struct {
	c      *Case
	in     Values
	want   Values
	bounds map[string]bound
}

// bound is the allowed error of one output.
type bound struct{ max, rms float64 }

// ceiling is the largest relative RMS error the naive program may have: a bad case must not widen its own bound.
func ceiling(dtype bindings.DType) float64 {
	if dtype == bindings.F32 {
		return 1e-5
	}
	return 2e-2
}

// NewReference evaluates the formula of a case: R once, N in every summation order. It fails when N itself is above the ceiling.
func NewReference(c *Case) (*Reference, error) { return newReference(c, c.inputs(true)) }

// newReference is NewReference for given inputs.
func newReference(c *Case, in Values) (*Reference, error) {
	ref := &Reference{c: c, in: in, bounds: map[string]bound{}}
	if c.Empty() {
		return ref, nil
	}
	ref.want = c.evaluate(&Prec{exact: true}, ref.in)
	ref.accumulate(ref.want, false)
	factor := 2.0
	if c.Forward != nil {
		factor = 3
	}
	for order := range orders {
		p := &Prec{order: order}
		naive := c.evaluate(p, ref.in)
		ref.accumulate(naive, true)
		for name, r := range ref.want {
			largest, rms := distance(naive[name], r)
			if limit := ceiling(c.DType) * rmsOf(r); !(rms <= limit) {
				return nil, fmt.Errorf("%s %s: the naive program is off by rms %.3g, ceiling %.3g: the case is ill-conditioned or the formula wrong", c, name, rms, limit)
			}
			a := spacing(r, c.arg(name).DType)
			b := ref.bounds[name]
			ref.bounds[name] = bound{max: max(b.max, factor*largest+a), rms: max(b.rms, factor*rms+a)}
		}
		if !p.summed {
			break
		}
	}
	return ref, nil
}

// accumulate adds to the formula's gradients what the op finds in their place.
func (ref *Reference) accumulate(out Values, naive bool) {
	for i := range ref.c.Args {
		a := &ref.c.Args[i]
		if a.Role != RoleAcc {
			continue
		}
		x := out[a.Name]
		for j, old := range ref.in[a.Name] {
			x[j] += old
		}
		if naive {
			roundAll(x, a)
		}
	}
}

// only leaves the named outputs to be checked; none means all.
func (ref *Reference) only(outputs []string) {
	if len(outputs) > 0 {
		maps.DeleteFunc(ref.want, func(name string, _ []float64) bool { return !slices.Contains(outputs, name) })
	}
}

// Check compares a kernel's outputs with the reference. ratio is the largest error as a part of what is allowed, 0 for exact cases.
func (ref *Reference) Check(got Values) (ratio float64, err error) {
	for name, want := range ref.want {
		if ref.c.Exact {
			if err := sameBits(name, got[name], want, ref.c.arg(name).DType); err != nil {
				return 0, err
			}
			continue
		}
		part, err := ref.bounds[name].check(name, got[name], want)
		ratio = max(ratio, part)
		if err != nil {
			return ratio, err
		}
	}
	return ratio, nil
}

// check compares one output; ratio is its error as a part of what is allowed.
func (b bound) check(name string, got, want []float64) (ratio float64, err error) {
	largest, rms := distance(got, want)
	ratio = max(part(largest, b.max), part(rms, b.rms))
	if !(largest <= b.max) || !(rms <= b.rms) {
		i := worst(got, want)
		return ratio, fmt.Errorf("%s: max error %.3g, allowed %.3g; rms %.3g, allowed %.3g; element %d is %v, want %v",
			name, largest, b.max, rms, b.rms, i, got[i], want[i])
	}
	return ratio, nil
}

// sameBits compares got with want rounded to the dtype, -0 and 0 being different.
func sameBits(name string, got, want []float64, dtype bindings.DType) error {
	for i := range want {
		if g, w := encode(got[i], dtype), encode(want[i], dtype); g != w {
			return fmt.Errorf("%s: element %d is %v (%#x), want %v (%#x)", name, i, got[i], g, want[i], w)
		}
	}
	return nil
}

// distance is the largest and the root-mean-square difference; NaN anywhere makes both NaN.
func distance(x, y []float64) (largest, rms float64) {
	for i := range x {
		d := math.Abs(x[i] - y[i])
		largest = max(largest, d)
		rms += d * d
	}
	return largest, math.Sqrt(rms / float64(max(1, len(x))))
}

// worst is the index of the largest difference, or of the first NaN.
func worst(x, y []float64) int {
	at, largest := 0, -1.0
	for i := range x {
		d := math.Abs(x[i] - y[i])
		if d != d {
			return i
		}
		if d > largest {
			at, largest = i, d
		}
	}
	return at
}

func rmsOf(x []float64) float64 {
	_, rms := distance(x, make([]float64, len(x)))
	return rms
}

// spacing is a of the rule: twice the largest |((R+0.3)-0.3)-R| when each step is rounded to dtype.
func spacing(r []float64, dtype bindings.DType) float64 {
	var a float64
	for _, x := range r {
		a = max(a, math.Abs(round(round(x+0.3, dtype)-0.3, dtype)-x))
	}
	return 2 * a
}

// part is err as a part of what is allowed.
func part(err, allowed float64) float64 {
	if err == 0 {
		return 0
	}
	return err / allowed
}
