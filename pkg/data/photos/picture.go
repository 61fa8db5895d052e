package photos

import (
	"image"
	"image/draw"
	_ "image/jpeg" // decoder
	"image/png"
	"io"
	"os"
	"path/filepath"

	_ "golang.org/x/image/webp" // decoder

	"github.com/fluxir/fluxir/pkg/data"
)

// decodeRGB decodes a JPEG, PNG or WebP to 8-bit RGB, opaque.
func decodeRGB(r io.Reader) (*image.RGBA, error) {
	src, _, err := image.Decode(r)
	if err != nil {
		return nil, err
	}
	dst := image.NewRGBA(image.Rect(0, 0, src.Bounds().Dx(), src.Bounds().Dy()))
	draw.Draw(dst, dst.Rect, image.Black, image.Point{}, draw.Src)
	draw.Draw(dst, dst.Rect, src, src.Bounds().Min, draw.Over)
	return dst, nil
}

// nearlyBlack says whether less than one pixel in a hundred has a green value of 72 or more: such a photograph holds only noise
// and gradients for a restoration model to learn from.
func nearlyBlack(m *image.RGBA) bool {
	bright := 0
	for i := 1; i < len(m.Pix); i += 4 {
		if m.Pix[i] >= 72 {
			bright++
		}
	}
	return bright*100 < m.Rect.Dx()*m.Rect.Dy()
}

// halve averages blocks of 2x2 pixels; an odd last row or column is left off.
func halve(m *image.RGBA) *image.RGBA {
	w, h := m.Rect.Dx()/2, m.Rect.Dy()/2
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		a, b := m.Pix[2*y*m.Stride:], m.Pix[(2*y+1)*m.Stride:]
		row := out.Pix[y*out.Stride : y*out.Stride+4*w]
		for i := range row {
			j := i + i&^3 // pixel i/4 comes from pixels i/4*2 and the next
			row[i] = uint8((int(a[j]) + int(a[j+4]) + int(b[j]) + int(b[j+4]) + 2) / 4)
		}
	}
	return out
}

// writePNG writes the picture, fast rather than small. The file appears whole or not at all.
func writePNG(path string, m *image.RGBA) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp*")
	if err != nil {
		return err
	}
	enc := png.Encoder{CompressionLevel: png.BestSpeed}
	err = enc.Encode(f, m)
	if e := f.Chmod(0o644); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// photo drops the alpha channel.
func photo(name string, m *image.RGBA) data.Photo {
	p := data.Photo{Name: name, W: m.Rect.Dx(), H: m.Rect.Dy()}
	p.Pix = make([]byte, 0, 3*p.W*p.H)
	for i := 0; i < len(m.Pix); i += 4 {
		p.Pix = append(p.Pix, m.Pix[i], m.Pix[i+1], m.Pix[i+2])
	}
	return p
}
