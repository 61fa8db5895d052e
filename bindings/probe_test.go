package bindings

import (
	"errors"
	"testing"
	"time"
)

// TestProbe: the peaks that every CPU has are above any machine's noise and below any machine's reach, a missing unit is an error that says so, and so is
// a wrong argument.
func TestProbe(t *testing.T) {
	d, err := OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for kind, limit := range map[Probe][2]float64{ProbeF32: {0.5, 1e3}, ProbeTriad: {0.1, 1e3}, ProbeBF16: {0.5, 1e4}, ProbeMatrix: {0.5, 1e5}} {
		var rate float64
		err := d.Do(func() (err error) {
			rate, err = d.Probe(kind, 2*time.Millisecond)
			return err
		})
		var status *Error
		if (kind == ProbeBF16 || kind == ProbeMatrix) && errors.As(err, &status) && status.Status == StatusUnsupported {
			continue
		}
		if err != nil || !(rate > limit[0]) || !(rate < limit[1]) {
			t.Errorf("probe %d: %v, %v; want %v", kind, rate, err, limit)
		}
	}
	err = d.Do(func() error {
		_, err := d.Probe(ProbeF32, 0)
		return err
	})
	if e, ok := err.(*Error); !ok || e.Status != StatusInvalid {
		t.Errorf("no time: %v", err)
	}
}
