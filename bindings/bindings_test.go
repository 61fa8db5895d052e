package bindings

import (
	"strings"
	"testing"
	"unsafe"
)

func TestTensorLayout(t *testing.T) {
	tensor := NewTensor(unsafe.Pointer(new(float32)), BF16, 3, 5, 7)
	c := tensor.c()
	if int(unsafe.Sizeof(tensor)) != int(unsafe.Sizeof(*c)) {
		t.Fatalf("size of Tensor %d, of fx_tensor %d", unsafe.Sizeof(tensor), unsafe.Sizeof(*c))
	}
	if int32(c.rank) != 3 || int64(c.shape[2]) != 7 || int64(c.strides[0]) != 35 || int32(c.dtype) != int32(BF16) {
		t.Fatalf("fx_tensor reads %+v", *c)
	}
}

func TestDeviceErrors(t *testing.T) {
	if _, err := OpenDevice("tpu", 0); err == nil || !strings.Contains(err.Error(), "tpu") {
		t.Errorf("opening tpu: %v", err)
	}
	d, err := OpenDevice("cpu", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		_, err := d.NewBuffer(-1)
		return err
	})
	if e, ok := err.(*Error); !ok || e.Status != StatusInvalid || !strings.Contains(e.Message, "got -1") {
		t.Errorf("negative size: %v", err)
	}
	err = d.Do(func() error {
		b, err := d.NewBuffer(4 * 24)
		if err != nil {
			return err
		}
		defer b.Free()
		x := NewTensor(b.Data(), F32, 2, 3, 4)
		gate := NewTensor(b.Data(), F32, 2, 5)
		return d.GateForward(&x, &x, &gate, &x, 1)
	})
	if e, ok := err.(*Error); !ok || e.Message != "gate_forward: gate: shape: got [2,5] want [2,4]" {
		t.Errorf("wrong shape: %v", err)
	}
	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "boom") {
			t.Errorf("panic inside Do came out as %v", r)
		}
	}()
	_ = d.Do(func() error { panic("boom") })
}
