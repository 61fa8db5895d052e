package golden

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/pkg/model/weights"
)

// Precisions of a result.
const (
	F32  = "f32"
	BF16 = "bf16"
)

// row is one tensor held against the reference.
type row struct {
	name, precision     string
	max, maxAllowed     float64
	rms, rmsAllowed     float64
	maxDecides, bounded bool
}

// ratio is how much of its bound the tensor uses; above 1 it fails. NaN counts as infinite.
func (r row) ratio() float64 {
	part := func(err, allowed float64) float64 {
		switch {
		case err <= allowed && allowed == 0:
			return 0
		case math.IsNaN(err) || allowed == 0:
			return math.Inf(1)
		}
		return err / allowed
	}
	if !r.bounded {
		return 0
	}
	ratio := part(r.rms, r.rmsAllowed)
	if r.maxDecides {
		ratio = max(ratio, part(r.max, r.maxAllowed))
	}
	return ratio
}

// Check holds a result K against the reference R of tensor x: "out.v", "grad.in.z", "grad.proj_out.weight", "final.theta_p", ….
// With n_err the errors of the naive program N and e = 1e-6 (f32), 2^-8 (bf16):
//
//	max|K-R| <= c·n_err.max + e·scale    c = 2 for out.*, 3 for grad.*, gradsum.*, final.*, finalsum.*
//	rms(K-R) <= c·n_err.rms + e·scale
//
// Where scale is 0, K must be exactly 0. In final.* a single element may move by the learning rate on rounding alone, so only the rms rule decides there.
// got is the whole tensor, row-major. Where the file holds every RowStride-th row only, these are compared, and the sum of all rows is compared
// with gradsum.* or finalsum.* beside it. A precision without a bound in n_err is compared for its size only.
func Check[T float32 | float64](t testing.TB, f *Fixture, x string, got []T, precision string) {
	t.Helper()
	ref := f.tensor(t, x)
	want, err := weights.Float64s(ref)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) == len(want) {
		f.compare(t, x, widen(got), want, precision)
		return
	}
	s, rowLen := f.RowStride, 0
	if len(ref.Shape) >= 2 && ref.Shape[0] > 0 {
		rowLen = len(want) / ref.Shape[0]
	}
	if s == 1 || rowLen == 0 || len(got)%rowLen != 0 || (len(got)/rowLen+s-1)/s != ref.Shape[0] {
		t.Errorf("golden: %s: got %d values, want %v, of every %d rows one", x, len(got), ref.Shape, s)
		return
	}
	kept, sum := make([]float64, 0, len(want)), make([]float64, rowLen)
	for i := 0; i*rowLen < len(got); i++ {
		line := widen(got[i*rowLen : (i+1)*rowLen])
		if i%s == 0 {
			kept = append(kept, line...)
		}
		for j, v := range line {
			sum[j] += v
		}
	}
	f.compare(t, x, kept, want, precision)
	group, name, _ := strings.Cut(x, ".")
	total, err := weights.Float64s(f.tensor(t, group+"sum."+name))
	if err != nil {
		t.Fatal(err)
	}
	f.compare(t, group+"sum."+name, sum, total, precision)
}

func widen[T float32 | float64](s []T) []float64 {
	out := make([]float64, len(s))
	for i, v := range s {
		out[i] = float64(v)
	}
	return out
}

// compare applies the rule to whole tensors, records the row and reports a miss.
func (f *Fixture) compare(t testing.TB, x string, got, want []float64, precision string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("golden: %s: got %d values, want %d", x, len(got), len(want))
		return
	}
	r := f.bound(t, x, precision)
	var sum float64
	for i, v := range got {
		d := math.Abs(v - want[i])
		if d > r.max || math.IsNaN(d) {
			r.max = d
		}
		sum += d * d
	}
	r.rms = math.Sqrt(sum / float64(max(1, len(got))))
	f.mu.Lock()
	f.rows = append(f.rows, r)
	f.mu.Unlock()
	if r.ratio() > 1 {
		t.Errorf("golden: %s: %s %s: max %.3g (allowed %.3g), rms %.3g (allowed %.3g)",
			filepath.Base(f.Dir), x, precision, r.max, r.maxAllowed, r.rms, r.rmsAllowed)
	}
}

// bound returns the row of a tensor with its allowed errors filled in.
func (f *Fixture) bound(t testing.TB, x, precision string) row {
	t.Helper()
	r := row{name: x, precision: precision}
	b, ok := f.NErr[x]
	if !ok {
		t.Fatalf("golden: %s: n_err has no %q", f.Dir, x)
	}
	var n *[2]float64
	var e float64
	switch precision {
	case F32:
		n, e = b.F32, 1e-6
	case BF16:
		n, e = b.BF16, 0x1p-8
	default:
		t.Fatalf("golden: precision %q, want %q or %q", precision, F32, BF16)
	}
	if n == nil {
		return r
	}
	c := 3.0
	if strings.HasPrefix(x, "out.") {
		c = 2
	}
	r.bounded, r.maxDecides = true, !strings.HasPrefix(x, "final.")
	if b.Scale != 0 {
		r.maxAllowed = c*n[0] + e*b.Scale
		r.rmsAllowed = c*n[1] + e*b.Scale
	}
	return r
}

// Exact compares bits with a tensor of the file, such as "deq.t.q4_0". got may be longer: the file holds the first rows of large tensors.
func (f *Fixture) Exact(t testing.TB, x string, got []float32) {
	t.Helper()
	want := f.Floats(t, x).Data
	if len(got) < len(want) {
		t.Errorf("golden: %s: got %d values, want %d", x, len(got), len(want))
		return
	}
	for i, w := range want {
		if math.Float32bits(got[i]) != math.Float32bits(w) {
			t.Errorf("golden: %s: element %d is %v, want %v", x, i, got[i], w)
			return
		}
	}
}

// CheckImage compares the 8-bit image of an f32 run with u8.image: equal, or off by one where the unrounded reference 255·(R/2+½) of
// out.image lies within twice N's error of a half.
func (f *Fixture) CheckImage(t testing.TB, got []uint8) {
	t.Helper()
	_, want := f.Ints(t, "u8.image")
	exact, err := weights.Float64s(f.tensor(t, "out.image"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) || len(exact) != len(want) {
		t.Errorf("golden: u8.image: got %d values, want %d", len(got), len(want))
		return
	}
	n := f.NErr["out.image"].F32
	if n == nil {
		t.Fatalf("golden: %s: n_err has no f32 bound of out.image", f.Dir)
	}
	for i, w := range want {
		level := 255 * (min(max(exact[i], -1), 1)/2 + 0.5)
		toHalf := math.Abs(level - math.Floor(level) - 0.5)
		off := math.Abs(float64(int64(got[i]) - w))
		if off > 1 || off == 1 && toHalf > 2*n[0]*127.5 {
			t.Errorf("golden: u8.image: value %d is %d, want %d (unrounded %.4f)", i, got[i], w, level)
			return
		}
	}
}

// table formats the n rows nearest to (or furthest over) their bounds.
func (f *Fixture) table(n int) string {
	f.mu.Lock()
	rows := slices.Clone(f.rows)
	f.mu.Unlock()
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(b.ratio(), a.ratio()) })
	var b strings.Builder
	fmt.Fprintf(&b, "%d tensors checked against %s, the nearest to their bounds:\n", len(rows), filepath.Base(f.Dir))
	fmt.Fprintf(&b, "%-60s %-5s %10s %10s %10s %10s %6s\n", "tensor", "", "max error", "allowed", "rms", "allowed", "ratio")
	for _, r := range rows[:min(n, len(rows))] {
		fmt.Fprintf(&b, "%-60s %-5s %10.3g %10.3g %10.3g %10.3g %6.2f\n", r.name, r.precision, r.max, r.maxAllowed, r.rms, r.rmsAllowed, r.ratio())
	}
	return b.String()
}
