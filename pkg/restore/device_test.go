package restore

import (
	"context"
	"math"
	"os"
	"testing"
)

// TestDevicePicture holds the device of FLUXIR_DEVICE against the CPU: a small picture restored with the embedded model, in steps enough for graphs. In bf16 its
// distance from the CPU's f32 picture may be twice that of the CPU's own bf16, in f32, whose unit is 2^16 times finer, a thousandth of it.
func TestDevicePicture(t *testing.T) {
	kind := os.Getenv("FLUXIR_DEVICE")
	if kind == "" || kind == "cpu" {
		t.Skip("FLUXIR_DEVICE names no other device")
	}
	picture := func(device, dtype string) []float32 {
		r, err := Open(Options{Device: device, DType: dtype, Steps: 3, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		out, err := r.Restore(context.Background(), gradient(19, 14), nil)
		if err != nil {
			t.Fatal(err)
		}
		return out.Pix
	}
	distance := func(a, b []float32) float64 {
		sum := 0.0
		for i := range a {
			sum += math.Pow(float64(a[i])-float64(b[i]), 2)
		}
		return math.Sqrt(sum / float64(len(a)))
	}
	want := picture("cpu", "f32")
	unit := distance(picture("cpu", "bf16"), want)
	for dtype, factor := range map[string]float64{"bf16": 2, "f32": 1e-3} {
		apart := distance(picture(kind, dtype), want)
		t.Logf("%s: rms distance %.3g, allowed %.3g", dtype, apart, factor*unit)
		if !(apart <= factor*unit) {
			t.Errorf("%s: rms distance from the CPU's f32 is %.3g, allowed %.3g", dtype, apart, factor*unit)
		}
	}
}
