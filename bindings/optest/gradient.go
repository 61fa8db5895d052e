package optest

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// CheckGradient holds the formula of a backward case against its forward case's, in float64. With the loss L = sum of dy·y over the outputs y
// whose gradients the backward op takes, every output "dx" must be dL/dx: along the first random direction in x as a whole and at some of its elements,
// by central differences of fourth order.
func CheckGradient(backward *Case) error {
	f := backward.Forward
	v := backward.inputs(false)
	analytic := backward.evaluate(&Prec{exact: true}, v)
	forward := f.inputs(false)
	for name := range forward {
		if x, ok := v[name]; ok {
			forward[name] = x
		}
	}
	loss := func() float64 {
		var sum float64
		for name, y := range f.evaluate(&Prec{exact: true}, forward) {
			for i, dy := range v["d"+name] {
				sum += dy * y[i]
			}
		}
		return sum
	}
	for i := range backward.Args {
		a := &backward.Args[i]
		if !a.writes() {
			continue
		}
		x, ok := forward[a.Name[1:]]
		if a.Name[0] != 'd' || !ok || len(x) != a.Len() {
			return fmt.Errorf("%s: output %s is not the gradient of an input of %s", backward.Op, a.Name, f.Op)
		}
		if err := checkDirections(loss, x, analytic[a.Name]); err != nil {
			return fmt.Errorf("%s %s: %s: %w", backward.Op, backward, a.Name, err)
		}
	}
	return nil
}

// checkDirections compares the slopes of loss by x with those of the gradient dx: in 20 single elements, and in a random direction.
func checkDirections(loss func() float64, x, dx []float64) error {
	if len(x) == 0 {
		return nil
	}
	r := rand.New(rand.NewPCG(1, uint64(len(x))))
	size := math.Abs(loss())
	for _, g := range dx {
		size = max(size, math.Abs(g))
	}
	for k := range 21 {
		direction := make([]float64, len(x))
		direction[r.IntN(len(x))] = 1
		if k == 0 {
			for i := range direction {
				direction[i] = r.NormFloat64() / math.Sqrt(float64(len(x)))
			}
		}
		var want float64
		for i, d := range direction {
			want += d * dx[i]
		}
		// Truncation is of the order h^4 = 1e-12, cancellation 1e-16/h = 1e-13, times derivatives and terms: 1e-8 of the size leaves room
		// for both and is far below the error of any wrong term.
		if got := slope(loss, x, direction, 1e-3); !(math.Abs(got-want) <= 1e-8*(size+1)) {
			return fmt.Errorf("slope %d: central difference %v, gradient %v", k, got, want)
		}
	}
	return nil
}

// slope is the derivative of loss along direction, from four points: (8 (L(h) - L(-h)) - (L(2h) - L(-2h))) / 12h. x is restored.
func slope(loss func() float64, x, direction []float64, h float64) float64 {
	old := append([]float64(nil), x...)
	at := func(s float64) float64 {
		for i := range x {
			x[i] = old[i] + s*direction[i]
		}
		return loss()
	}
	d := (8*(at(h)-at(-h)) - (at(2*h) - at(-2*h))) / (12 * h)
	copy(x, old)
	return d
}
