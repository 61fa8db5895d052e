package data

import "math"

const (
	sheetGap  = 8 // white pixels between the pictures of a sheet
	sheetZoom = 3 // enlargement of the detail
)

// Sheet sets two pictures of one size side by side, before on the left, and below them the same detail of both, enlarged by three: the window of a third of the width and
// height in which they differ most.
func Sheet(before, after *Image) *Image {
	w, h := before.W, before.H
	dw, dh := max(1, w/sheetZoom), max(1, h/sheetZoom)
	x, y := mostChanged(before, after, dw, dh)
	sheet := New(2*max(w, sheetZoom*dw)+sheetGap, h+sheetGap+sheetZoom*dh)
	for i := range sheet.Pix {
		sheet.Pix[i] = 1
	}
	for i, m := range []*Image{before, after} {
		left := i * (max(w, sheetZoom*dw) + sheetGap)
		sheet.paste(m, left, 0, 1)
		sheet.paste(m.Crop(x, y, dw, dh), left, h+sheetGap, sheetZoom)
	}
	return sheet
}

// mostChanged is the corner of the dw × dh window with the largest mean absolute difference.
func mostChanged(a, b *Image, dw, dh int) (x, y int) {
	sums := make([]float64, (a.W+1)*(a.H+1)) // integral of the difference
	for j := range a.H {
		line := 0.0
		for i := range a.W {
			for c := range 3 {
				k := 3*(j*a.W+i) + c
				line += math.Abs(float64(a.Pix[k] - b.Pix[k]))
			}
			sums[(j+1)*(a.W+1)+i+1] = sums[j*(a.W+1)+i+1] + line
		}
	}
	best := -1.0
	for j := 0; j+dh <= a.H; j++ {
		for i := 0; i+dw <= a.W; i++ {
			top, bottom := sums[j*(a.W+1):], sums[(j+dh)*(a.W+1):]
			if s := bottom[i+dw] - bottom[i] - top[i+dw] + top[i]; s > best {
				best, x, y = s, i, j
			}
		}
	}
	return x, y
}

// paste copies src to (left, top), each pixel as zoom × zoom pixels.
func (m *Image) paste(src *Image, left, top, zoom int) {
	for y := range src.H * zoom {
		for x := range src.W * zoom {
			to, from := 3*((top+y)*m.W+left+x), 3*(y/zoom*src.W+x/zoom)
			copy(m.Pix[to:to+3], src.Pix[from:from+3])
		}
	}
}
