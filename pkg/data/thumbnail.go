package data

import (
	"bytes"
	"encoding/base64"
	"image"
	"image/jpeg"
)

// DataURL is a picture as a JPEG inside a page, no side longer than most pixels.
func DataURL(m *Image, most int) (string, error) {
	if f := float64(most) / float64(max(m.W, m.H)); f < 1 {
		m = Resize(m, max(1, int(f*float64(m.W))), max(1, int(f*float64(m.H))), Area)
	}
	photo := NewPhoto("", m)
	rgba := image.NewRGBA(image.Rect(0, 0, m.W, m.H))
	for i := range m.W * m.H {
		copy(rgba.Pix[4*i:4*i+3], photo.Pix[3*i:3*i+3])
		rgba.Pix[4*i+3] = 255
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, rgba, &jpeg.Options{Quality: 90}); err != nil {
		return "", err
	}
	return "data:image/jpeg;base64," + base64.StdEncoding.EncodeToString(b.Bytes()), nil
}
