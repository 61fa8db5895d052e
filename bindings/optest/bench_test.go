package optest

import (
	"math"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/bindings"
)

// TestBench: the smaller shapes of the benchmark pass their check, and every row's samples are boxes of its arguments.
func TestBench(t *testing.T) {
	d := openDevice(t).first
	names := map[string]bool{}
	for _, op := range Ops {
		for _, b := range op.Bench() {
			name := b.Preset + "/" + b.Case.Op + "/" + b.Case.String()
			if names[name] {
				t.Errorf("%s is listed twice", name)
			}
			names[name] = true
			checkBoxes(t, name, &b)
			if b.Case.Bytes() > 1<<22 || b.Case.FLOPs > 1<<24 {
				continue
			}
			if err := d.Do(func() error { return checkPlaced(d, &b) }); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func checkBoxes(t *testing.T, name string, b *Bench) {
	for _, s := range b.Samples {
		for i := range s.Case.Args {
			a := &s.Case.Args[i]
			whole := b.Case.arg(a.Name)
			if whole == nil || whole.Role != a.Role || whole.DType != a.DType || len(whole.Shape) != len(a.Shape) {
				t.Fatalf("%s: sample %v: %s is not part of the case", name, &s.Case, a.Name)
			}
			for k, n := range a.Shape {
				if n > whole.Shape[k] {
					t.Fatalf("%s: sample %v: %s is larger than the case's", name, &s.Case, a.Name)
				}
			}
		}
	}
}

func checkPlaced(d *bindings.Device, b *Bench) error {
	call, err := b.Place(d)
	if err != nil {
		return err
	}
	defer call.Free()
	_, err = call.Check(b.Samples)
	return err
}

// TestSamples: a backward case with what forward saved, cut in the middle, passes; an error inside the box is seen, one outside of it is not.
func TestSamples(t *testing.T) {
	d := openDevice(t).first
	attention := attentionShape{B: 1, Lq: 40, Lk: 40, H: 4, D: 32}
	keys := attention
	keys.Lk, keys.H = 4, 2
	wrong := double(func(y, _ []float32, row int) { y[row] = 0 })
	small := double(nil)
	box := func(rows, columns int) Case {
		c := small
		c.Args = []Arg{Out("y", bindings.F32, rows, columns), In("x", bindings.F32, rows, columns)}
		return c
	}
	for want, b := range map[string]Bench{
		"":          bench("", attentionBackward(bindings.F32, attention), sample(attentionBackward(bindings.F32, keys), "dk", "dv")),
		"max error": bench("", wrong, sample(box(1, 3))),
	} {
		err := d.Do(func() error { return checkPlaced(d, &b) })
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	outside := bench("", double(func(y, _ []float32, _ int) { y[0] = float32(math.NaN()) }), sample(box(3, 3)))
	if err := d.Do(func() error { return checkPlaced(d, &outside) }); err != nil {
		t.Error(err)
	}
}
