package bindings

import "testing"

// The dry device has more memory than any machine, runs ops on it, and counts.
func TestDryDevice(t *testing.T) {
	d, err := OpenDevice("dry", 3)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		const rows, width = 1 << 20, 1 << 16
		b, err := d.NewBuffer(rows * width * 4) // 256 GB
		if err != nil {
			return err
		}
		defer b.Free()
		x, w := NewTensor(b.Data(), F32, rows, width), NewTensor(b.Data(), F32, width, width)
		if err := d.Fill(&x, 1); err != nil {
			return err
		}
		if err := d.LinearForward(&x, nil, &x, nil, nil, &w, nil, 0); err != nil {
			return err
		}
		host := []float32{7}
		if err := CopyToHost(d, host, b.Data()); err != nil || host[0] != 7 {
			t.Errorf("copy to the host: %v, %v", host, err)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Device != "dry" || info.Threads != 3 || info.Allocated < b.Bytes() || info.Allocated > b.Bytes()*3 || info.Peak != info.Allocated {
			t.Errorf("info %+v", info)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
