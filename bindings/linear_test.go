package bindings

import "testing"

// The rows of x and dy must be the same: the product would read past the end of one.
func TestLinearRows(t *testing.T) {
	d, err := OpenDevice("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		b, err := d.NewBuffer(4 * 64)
		if err != nil {
			return err
		}
		defer b.Free()
		dw, dy := NewTensor(b.Data(), F32, 2, 3), NewTensor(b.Data(), F32, 5, 2)
		x, w := NewTensor(b.Data(), F32, 4, 3), NewTensor(b.Data(), F32, 2, 3)
		return d.LinearBackward(nil, nil, &dw, nil, &dy, &x, nil, &w, nil, ActNone, false)
	})
	if e, ok := err.(*Error); !ok || e.Message != "linear_backward: x: shape: got [4,3] want [5,3]" {
		t.Errorf("x with fewer rows than dy: %v", err)
	}
}
