package data

import "fmt"

// Format names an image file format that Load reads and Save writes.
type Format string

// The file formats that are recognised by their content.
const (
	FormatUnknown Format = ""
	FormatJPEG    Format = "JPEG"
	FormatPNG     Format = "PNG"
	FormatWebP    Format = "WebP"
	FormatTIFF    Format = "TIFF"
)

// Meta is what a file says about its pixels besides the pixels. The zero value means "8 bit colour, nothing known".
type Meta struct {
	Format   Format  // format the image was read from
	BitDepth int     // bits per sample of the source, 8 or 16 (1, 2 and 4 bit sources count as 8); 0 = unknown, treated as 8
	Gray     bool    // the source had one colour channel; Pix still has three, all equal
	ICC      []byte  // ICC profile as embedded, or nil
	EXIF     []byte  // TIFF structure of the EXIF block without the "Exif\0\0" prefix, orientation reset to 1, or nil
	DPI      float64 // dots per inch, 0 = unknown
}

// Image is a colour picture: non-linear RGB as stored in the file, nominally 0..1 (values outside are allowed until they are saved).
// Methods never share memory with their receiver.
type Image struct {
	W, H  int
	Pix   []float32 // [H, W, 3] row-major RGB, len 3*W*H
	Alpha []float32 // [H, W] straight (not premultiplied) opacity 0..1, or nil when opaque
	Meta  Meta
}

// New returns a black, opaque image of w by h pixels. It panics when a side is not positive.
func New(w, h int) *Image {
	if w <= 0 || h <= 0 {
		panic(fmt.Sprintf("data: New: got size %dx%d, want both sides positive", w, h))
	}
	return &Image{W: w, H: h, Pix: make([]float32, 3*w*h)}
}

// newLike returns a black image of w by h pixels with an alpha plane (zero) and the metadata if m has them.
func newLike(m *Image, w, h int) *Image {
	out := New(w, h)
	if m.Alpha != nil {
		out.Alpha = make([]float32, w*h)
	}
	out.Meta = m.Meta.clone()
	return out
}

func (m Meta) clone() Meta {
	m.ICC = append([]byte(nil), m.ICC...)
	m.EXIF = append([]byte(nil), m.EXIF...)
	return m
}

// Clone returns a deep copy.
func (m *Image) Clone() *Image {
	out := newLike(m, m.W, m.H)
	copy(out.Pix, m.Pix)
	copy(out.Alpha, m.Alpha)
	return out
}

// Crop returns a copy of the w by h rectangle whose top left pixel is (x, y). It panics when the rectangle leaves the image.
func (m *Image) Crop(x, y, w, h int) *Image {
	if x < 0 || y < 0 || w <= 0 || h <= 0 || x > m.W-w || y > m.H-h {
		panic(fmt.Sprintf("data: Crop: rectangle %dx%d at (%d,%d) leaves the %dx%d image", w, h, x, y, m.W, m.H))
	}
	out := newLike(m, w, h)
	for r := range h {
		src := (y+r)*m.W + x
		copy(out.Pix[3*r*w:3*(r+1)*w], m.Pix[3*src:])
		if m.Alpha != nil {
			copy(out.Alpha[r*w:(r+1)*w], m.Alpha[src:])
		}
	}
	return out
}

// FlipH returns the image mirrored left to right.
func (m *Image) FlipH() *Image {
	return m.remap(m.W, m.H, func(x, y int) (int, int) { return m.W - 1 - x, y })
}

// FlipV returns the image mirrored top to bottom.
func (m *Image) FlipV() *Image {
	return m.remap(m.W, m.H, func(x, y int) (int, int) { return x, m.H - 1 - y })
}

// Transpose returns the image mirrored along its main diagonal: out(x, y) = in(y, x).
func (m *Image) Transpose() *Image {
	return m.remap(m.H, m.W, func(x, y int) (int, int) { return y, x })
}

// Rot90 returns the image turned clockwise by k quarter turns; k may be negative.
func (m *Image) Rot90(k int) *Image {
	switch k & 3 {
	case 1:
		return m.remap(m.H, m.W, func(x, y int) (int, int) { return y, m.H - 1 - x })
	case 2:
		return m.remap(m.W, m.H, func(x, y int) (int, int) { return m.W - 1 - x, m.H - 1 - y })
	case 3:
		return m.remap(m.H, m.W, func(x, y int) (int, int) { return m.W - 1 - y, x })
	}
	return m.Clone()
}

// remap builds a w by h image whose pixel (x, y) is the pixel at(x, y) of m.
func (m *Image) remap(w, h int, at func(x, y int) (int, int)) *Image {
	out := newLike(m, w, h)
	for y := range h {
		for x := range w {
			sx, sy := at(x, y)
			dst, src := y*w+x, sy*m.W+sx
			copy(out.Pix[3*dst:3*dst+3], m.Pix[3*src:3*src+3])
			if m.Alpha != nil {
				out.Alpha[dst] = m.Alpha[src]
			}
		}
	}
	return out
}
