package bindings

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// TestStreamedStores: outputs of 8 MiB are written around the caches (csrc/core/op.h), halves of them are not; the bits are the same. Rows are padded, and
// their length is no multiple of a vector, so that each has a tail. Ops that sum over rows are not among them.
func TestStreamedStores(t *testing.T) {
	const rows, row, padded, heads = 4096, 1043, 1056, 16
	d, err := OpenDevice("cpu", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]uint16, rows*padded)
	for i := range words {
		words[i] = uint16(random.Uint32()&0x80ff | 0x3f00) // ±[0.5, 2)
	}
	floats := make([]float32, rows*heads)
	for i := range floats {
		floats[i] = random.Float32() + 0.5
	}
	err = d.Do(func() error {
		var a, b, out, half, f Tensor
		for _, x := range []*Tensor{&a, &b, &out, &half, &f} {
			buffer, err := d.NewBuffer(rows * padded * 2)
			if err != nil {
				return err
			}
			defer buffer.Free()
			*x = NewTensor(buffer.Data(), BF16, 1, rows, padded)
			x.Shape[2] = row
			if err := CopyToDevice(d, x.Data, words); err != nil {
				return err
			}
		}
		if err := CopyToDevice(d, f.Data, floats); err != nil {
			return err
		}
		vector, mean := NewTensor(a.Data, BF16, 1, row), NewTensor(f.Data, F32, 1, rows)
		ops := map[string]func(y, x, r, m *Tensor) error{
			"adaln forward":  func(y, x, r, m *Tensor) error { return d.AdaLNForward(y, nil, nil, x, &vector, &vector, 1e-6) },
			"adaln backward": func(y, x, r, m *Tensor) error { return d.AdaLNBackward(y, nil, nil, x, r, m, m, &vector, false) },
			"gate forward":   func(y, x, r, m *Tensor) error { return d.GateForward(y, x, &vector, r, 0.5) },
			"gate backward":  func(y, x, r, m *Tensor) error { return d.GateBackward(y, nil, x, &vector, nil, 0.5, false) },
			"act forward":    func(y, x, r, m *Tensor) error { return d.ActForward(y, x, ActGELUTanh) },
			"act backward":   func(y, x, r, m *Tensor) error { return d.ActBackward(y, x, r, ActSiLU) },
			"add":            func(y, x, r, m *Tensor) error { return d.Add(y, x, r) },
			"layout":         func(y, x, r, m *Tensor) error { return d.Layout(y, x) },
			"norm and rope": func(y, x, r, m *Tensor) error {
				y4, x4, weight := byHead(*y), byHead(*x), NewTensor(a.Data, BF16, 64)
				return d.QKNormRopeForward(&y4, nil, &x4, &weight, nil, 1e-6)
			},
		}
		for name, op := range ops {
			for _, y := range []*Tensor{&out, &half} {
				if err := CopyToDevice(d, y.Data, words); err != nil {
					return err
				}
			}
			if err := op(&out, &a, &b, &mean); err != nil {
				return err
			}
			for first := 0; first < rows; first += rows / 2 {
				y, x, r, m := part(half, first, rows/2), part(a, first, rows/2), part(b, first, rows/2), mean
				m.Data, m.Shape[1] = unsafe.Add(m.Data, 4*first), rows/2
				if err := op(&y, &x, &r, &m); err != nil {
					return err
				}
			}
			if !bytes.Equal(unsafe.Slice((*byte)(out.Data), rows*padded*2), unsafe.Slice((*byte)(half.Data), rows*padded*2)) {
				t.Errorf("%s: large outputs have other bits", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// part is n rows of x [1,L,C].
func part(x Tensor, first, n int) Tensor {
	x.Data, x.Shape[1] = unsafe.Add(x.Data, 2*int64(first)*x.Strides[1]), int64(n)
	return x
}

// byHead is x [1,L,C] as [1,L,16,64].
func byHead(x Tensor) Tensor {
	x.Rank, x.Shape[2], x.Shape[3], x.Strides[2], x.Strides[3] = 4, 16, 64, 64, 1
	return x
}
