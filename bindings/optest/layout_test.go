package optest

import (
	"math"
	"testing"

	"github.com/fluxir/fluxir/bindings"
)

// convert runs fx_layout on raw elements.
func convert[Y, X any](t *testing.T, d *bindings.Device, to, from bindings.DType, x []X) []Y {
	t.Helper()
	y := make([]Y, len(x))
	err := d.Do(func() error {
		in, err := d.NewBuffer(int64(len(x) * from.Size()))
		if err != nil {
			return err
		}
		defer in.Free()
		out, err := d.NewBuffer(int64(len(x) * to.Size()))
		if err != nil {
			return err
		}
		defer out.Free()
		if err := bindings.CopyToDevice(d, in.Data(), x); err != nil {
			return err
		}
		xt, yt := bindings.NewTensor(in.Data(), from, len(x)), bindings.NewTensor(out.Data(), to, len(x))
		if err := d.Layout(&yt, &xt); err != nil {
			return err
		}
		return bindings.CopyToHost(d, y, out.Data())
	})
	if err != nil {
		t.Fatal(err)
	}
	return y
}

// TestHalfBits converts every f16 to f32 and back, and to f16 what lies on, just below and just above each rounding boundary.
func TestHalfBits(t *testing.T) {
	dev := openDevice(t)
	halves := make([]uint16, 1<<16)
	for i := range halves {
		halves[i] = uint16(i)
	}
	wide := convert[float32](t, dev.first, bindings.F32, bindings.F16, halves)
	back := convert[uint16](t, dev.first, bindings.F16, bindings.F32, wide)
	var between []float32
	for i, h := range halves {
		want := decode(uint32(h), bindings.F16)
		if got := float64(wide[i]); got != want && (got == got || want == want) || math.Signbit(got) != (h>>15 == 1) {
			t.Fatalf("%s: %#04x becomes %v, want %v", dev.name, h, got, want)
		}
		if back[i] != h && want == want {
			t.Fatalf("%s: %#04x comes back as %#04x", dev.name, h, back[i])
		}
		if want != want && (back[i]&0x7fff <= 0x7c00 || back[i]>>15 != h>>15) {
			t.Fatalf("%s: the NaN %#04x comes back as %#04x", dev.name, h, back[i])
		}
		if h&0x7fff < 0x7c00 {
			middle := float32((want + decode(uint32(h+1), bindings.F16)) / 2)
			if h&0x7fff == 0x7bff {
				middle = float32(math.Copysign(65520, want))
			}
			between = append(between, middle, math.Nextafter32(middle, 0), math.Nextafter32(middle, float32(math.Copysign(1e6, want))))
		}
	}
	between = append(between, math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, 1e-30)
	for i, got := range convert[uint16](t, dev.first, bindings.F16, bindings.F32, between) {
		if want := uint16(encode(float64(between[i]), bindings.F16)); got != want {
			t.Fatalf("%s: %v becomes %#04x, want %#04x", dev.name, between[i], got, want)
		}
	}
}
