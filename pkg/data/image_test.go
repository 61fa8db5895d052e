package data

import (
	"math"
	"slices"
	"testing"
)

// numbered returns a w by h image with alpha in which every value tells its pixel and channel.
func numbered(w, h int) *Image {
	m := New(w, h)
	m.Alpha = make([]float32, w*h)
	for i := range m.Pix {
		m.Pix[i] = float32(i)
	}
	for i := range m.Alpha {
		m.Alpha[i] = float32(i)
	}
	m.Meta = Meta{BitDepth: 16, ICC: []byte{1, 2}, EXIF: []byte{3}}
	return m
}

func TestGeometry(t *testing.T) {
	m := numbered(3, 2) // 0 1 2 / 3 4 5
	tests := []struct {
		name string
		got  *Image
		w, h int
		want []float32 // alpha, that is the source pixel numbers
	}{
		{"clone", m.Clone(), 3, 2, []float32{0, 1, 2, 3, 4, 5}},
		{"crop", m.Crop(1, 0, 2, 2), 2, 2, []float32{1, 2, 4, 5}},
		{"flip h", m.FlipH(), 3, 2, []float32{2, 1, 0, 5, 4, 3}},
		{"flip v", m.FlipV(), 3, 2, []float32{3, 4, 5, 0, 1, 2}},
		{"transpose", m.Transpose(), 2, 3, []float32{0, 3, 1, 4, 2, 5}},
		{"rot 0", m.Rot90(0), 3, 2, []float32{0, 1, 2, 3, 4, 5}},
		{"rot 1", m.Rot90(1), 2, 3, []float32{3, 0, 4, 1, 5, 2}},
		{"rot 2", m.Rot90(2), 3, 2, []float32{5, 4, 3, 2, 1, 0}},
		{"rot 3", m.Rot90(3), 2, 3, []float32{2, 5, 1, 4, 0, 3}},
		{"rot -1", m.Rot90(-1), 2, 3, []float32{2, 5, 1, 4, 0, 3}},
	}
	for _, tc := range tests {
		if tc.got.W != tc.w || tc.got.H != tc.h || !slices.Equal(tc.got.Alpha, tc.want) {
			t.Errorf("%s: got %dx%d %v, want %dx%d %v", tc.name, tc.got.W, tc.got.H, tc.got.Alpha, tc.w, tc.h, tc.want)
		}
		for i, a := range tc.want {
			if rgb := tc.got.Pix[3*i : 3*i+3]; rgb[0] != 3*a || rgb[1] != 3*a+1 || rgb[2] != 3*a+2 {
				t.Errorf("%s: pixel %d is %v, want that of source pixel %v", tc.name, i, rgb, a)
			}
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	m := numbered(2, 2)
	c := m.Clone()
	c.Pix[0], c.Alpha[0], c.Meta.ICC[0], c.Meta.EXIF[0] = 9, 9, 9, 9
	if m.Pix[0] != 0 || m.Alpha[0] != 0 || m.Meta.ICC[0] != 1 || m.Meta.EXIF[0] != 3 {
		t.Error("writing to a clone changed the original")
	}
}

func TestCropOutsidePanics(t *testing.T) {
	for _, r := range [][4]int{{-1, 0, 1, 1}, {0, 0, 4, 1}, {2, 1, 2, 1}, {0, 0, 0, 1}, {math.MaxInt, 0, 1, 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Crop%v of a 3x2 image did not panic", r)
				}
			}()
			New(3, 2).Crop(r[0], r[1], r[2], r[3])
		}()
	}
}
