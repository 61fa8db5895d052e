package train

import (
	"math"
	"slices"
	"testing"
)

// Differences are taken seed by seed, where both runs are there; their interval is Student's.
func TestPairedDifferences(t *testing.T) {
	row := func(v ...float64) (list []*Result) {
		for _, x := range v {
			if math.IsNaN(x) {
				list = append(list, nil)
				continue
			}
			list = append(list, &Result{Measures: Measures{Velocity: []float64{x - 1, x + 1}}})
		}
		return list
	}
	c := columns()[0]
	arm, base := row(12, 11, math.NaN(), 14), row(10, 10, 3, 11)
	if v := values(c, arm, base); !slices.Equal(v, []float64{2, 1, 3}) {
		t.Errorf("differences %v", v)
	}
	if v := values(c, arm, nil); !slices.Equal(v, []float64{12, 11, 14}) {
		t.Errorf("values %v", v)
	}
	const t975 = 4.302652729911275 // Student's t, two degrees of freedom
	if got, want := halfWidth([]float64{2, 1, 3}), t975/math.Sqrt(3); math.Abs(got-want) > 1e-9 {
		t.Errorf("half width %.12f, want %.12f", got, want)
	}
	for text, v := range map[string][]float64{"": nil, "+2.0000": {2}, "+2.0000 ± 2.4841": {2, 1, 3}, "**+5.0000 ± 2.4841**": {5, 4, 6}, "**-5.0000 ± 2.4841**": {-5, -4, -6}} {
		if got := difference(c, v); got != text {
			t.Errorf("%v: %q, want %q", v, got, text)
		}
	}
	if got := meanAndSD(c, []float64{1, 2, 3}); got != "2.0000 ± 1.0000" {
		t.Errorf("mean and deviation %q", got)
	}
}
