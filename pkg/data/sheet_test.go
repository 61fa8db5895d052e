package data

import "testing"

func TestSheet(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {2, 7}, {30, 20}} {
		before := New(size[0], size[1])
		after := before.Clone()
		last := len(after.Pix) - 3
		after.Pix[last] = 1 // the lower right corner turns red
		s := Sheet(before, after)
		dw, dh := max(1, size[0]/3), max(1, size[1]/3)
		half := max(size[0], 3*dw)
		if s.W != 2*half+8 || s.H != size[1]+8+3*dh {
			t.Fatalf("%v: sheet of %d×%d", size, s.W, s.H)
		}
		at := func(x, y int) [3]float32 { return [3]float32(s.Pix[3*(y*s.W+x):]) }
		red, black, white := [3]float32{1, 0, 0}, [3]float32{}, [3]float32{1, 1, 1}
		if got := at(half+8+size[0]-1, size[1]-1); got != red {
			t.Errorf("%v: corner of the right picture %v", size, got)
		}
		if got := at(size[0]-1, size[1]-1); got != black {
			t.Errorf("%v: corner of the left picture %v", size, got)
		}
		if got := at(half+8+3*dw-1, s.H-1); got != red {
			t.Errorf("%v: corner of the enlarged detail %v", size, got)
		}
		if got := at(half+4, 0); got != white {
			t.Errorf("%v: gap %v", size, got)
		}
	}
}
