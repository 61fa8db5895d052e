package photos

import (
	"bytes"
	"errors"
	"image"
	"image/png"
	"os"
	"path/filepath"

	"github.com/fluxir/fluxir/pkg/data"
)

// develop turns the bytes of a picture file into the photograph that training sees; the error says why it is not fit for use.
func develop(s source, raw []byte) (data.Photo, error) {
	m, err := data.Decode(bytes.NewReader(raw))
	if err != nil {
		return data.Photo{}, err
	}
	if s.halve {
		if m.W < 2 || m.H < 2 {
			return data.Photo{}, errors.New("too small")
		}
		m = data.Resize(m, m.W/2, m.H/2, data.Area)
	}
	p := data.NewPhoto(s.name(), m)
	if nearlyBlack(p) {
		return data.Photo{}, errors.New("nearly black")
	}
	return p, nil
}

// nearlyBlack says whether less than one pixel in a hundred has a green value of 72 or more: such a photograph holds little besides
// noise and gradients for a restoration model to learn from.
func nearlyBlack(p data.Photo) bool {
	bright := 0
	for i := 1; i < len(p.Pix); i += 3 {
		if p.Pix[i] >= 72 {
			bright++
		}
	}
	return bright*100 < p.W*p.H
}

// writePNG writes the photograph, fast rather than small. The file appears whole or not at all.
func writePNG(path string, p data.Photo) error {
	m := image.NewNRGBA(image.Rect(0, 0, p.W, p.H))
	for i := range p.W * p.H {
		copy(m.Pix[4*i:4*i+3], p.Pix[3*i:])
		m.Pix[4*i+3] = 255
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp*")
	if err != nil {
		return err
	}
	enc := png.Encoder{CompressionLevel: png.BestSpeed}
	err = errors.Join(enc.Encode(f, m), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
