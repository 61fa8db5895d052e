package data

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/gen2brain/webp"
)

// SaveOptions say how pixels become a file. The zero value keeps what the source was.
type SaveOptions struct {
	Format    Format // FormatUnknown = by the extension of the path
	Quality   int    // 1..100; 0 = 95 for JPEG, lossless for WebP
	BitDepth  int    // 8 or 16, 0 = that of the source (Meta.BitDepth); JPEG and WebP are always 8
	StripMeta bool   // leave out EXIF (profile and resolution stay: they say what the pixels mean)
}

// FormatOf tells the format from the extension of path; ErrUnsupported names the extension and those that are known.
func FormatOf(path string) (Format, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".jpg", ".jpeg":
		return FormatJPEG, nil
	case ".png":
		return FormatPNG, nil
	case ".webp":
		return FormatWebP, nil
	case ".tif", ".tiff":
		return FormatTIFF, nil
	default:
		return FormatUnknown, fileError(path, errorOf(ErrUnsupported, "unknown extension %q (want .png, .jpg, .webp or .tif)", ext))
	}
}

// Save writes m to path through a temporary file in the same folder that is synced and then renamed: path holds either the old or the
// complete new file. Errors start with the path. See Encode for what is written.
func Save(path string, m *Image, o SaveOptions) error {
	if o.Format == FormatUnknown {
		f, err := FormatOf(path)
		if err != nil {
			return err
		}
		o.Format = f
	}
	var buf bytes.Buffer
	if err := Encode(&buf, m, o); err != nil {
		return fileError(path, err)
	}
	return WriteFile(path, buf.Bytes())
}

// Encode writes m in o.Format (FormatUnknown is PNG). Samples are clamped to 0..1 and rounded half to even; a NaN is an error.
// An image whose Meta.Gray is set becomes one channel (Rec. 601 luma), where it has alpha three equal ones. JPEG has no alpha: the
// picture is laid over white. JPEG is 4:2:0, TIFF deflated. ICC profile (when it fits the channels), EXIF (not in
// TIFF) and resolution (not in WebP) are carried over.
func Encode(w io.Writer, m *Image, o SaveOptions) error {
	if err := m.check(); err != nil {
		return err
	}
	if err := o.Format.CheckSize(m.W, m.H); err != nil {
		return err
	}
	depth := m.Meta.BitDepth
	if o.BitDepth != 0 {
		depth = o.BitDepth
	}
	if depth == 0 || o.Format == FormatJPEG || o.Format == FormatWebP {
		depth = 8
	}
	if depth != 8 && depth != 16 {
		return errorOf(ErrUnsupported, "bit depth %d (want 8 or 16)", depth)
	}
	if o.Format == FormatJPEG && m.Alpha != nil {
		m = m.overWhite()
	}
	meta := m.Meta
	if o.StripMeta {
		meta.EXIF = nil
	}
	space := "RGB "
	if m.Meta.Gray && m.Alpha == nil && o.Format != FormatWebP {
		space = "GRAY"
	}
	if profileSpace(meta.ICC) != space {
		meta.ICC = nil
	}
	src := toGo(m, depth, m.Meta.Gray)
	var buf bytes.Buffer
	var err error
	var out []byte
	switch o.Format {
	case FormatPNG, FormatUnknown:
		err = png.Encode(&buf, src)
		if err == nil {
			out = addPNGMeta(buf.Bytes(), meta)
		}
	case FormatJPEG:
		err = encodeJPEG(&buf, src, o.Quality)
		if err == nil {
			out = addJPEGMeta(buf.Bytes(), meta)
		}
	case FormatWebP:
		err = encodeWebP(&buf, src, o.Quality)
		if err == nil {
			out = addWebPMeta(buf.Bytes(), m.W, m.H, m.Alpha != nil, meta)
		}
	case FormatTIFF:
		err = encodeTIFF(&buf, src, m.Alpha != nil, meta)
		out = buf.Bytes()
	default:
		err = errorOf(ErrUnsupported, "unknown format %q", o.Format)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// CheckSize returns ErrTooLarge where the format cannot hold w by h pixels.
func (f Format) CheckSize(w, h int) error {
	side := math.MaxInt32
	switch f {
	case FormatJPEG:
		side = math.MaxUint16
	case FormatWebP:
		side = 1<<14 - 1
	}
	if w > side || h > side {
		return errorOf(ErrTooLarge, "a %s file cannot hold %dx%d pixels (at most %d a side)", f, w, h, side)
	}
	return nil
}

// check finds what cannot be written: planes of the wrong length and NaN.
func (m *Image) check() error {
	if m.W <= 0 || m.H <= 0 || len(m.Pix) != 3*m.W*m.H || m.Alpha != nil && len(m.Alpha) != m.W*m.H {
		return fmt.Errorf("image of %dx%d pixels has %d samples and %d alpha", m.W, m.H, len(m.Pix), len(m.Alpha))
	}
	for i, v := range m.Pix {
		if v != v {
			return fmt.Errorf("pixel (%d,%d) is not a number", i/3%m.W, i/3/m.W)
		}
	}
	return nil
}

// overWhite returns the opaque picture on a white ground.
func (m *Image) overWhite() *Image {
	out := m.Clone()
	for i, a := range m.Alpha {
		for c := range 3 {
			out.Pix[3*i+c] = a*m.Pix[3*i+c] + (1 - a)
		}
	}
	out.Alpha = nil
	return out
}

func encodeJPEG(w io.Writer, src image.Image, quality int) error {
	if quality == 0 {
		quality = 95
	}
	if quality < 1 || quality > 100 {
		return errorOf(ErrUnsupported, "JPEG quality %d (want 1 to 100)", quality)
	}
	if n, ok := src.(*image.NRGBA); ok {
		src = &image.RGBA{Pix: n.Pix, Stride: n.Stride, Rect: n.Rect} // opaque here, and the encoder is fast for this type
	}
	return jpeg.Encode(w, src, &jpeg.Options{Quality: quality})
}

func encodeWebP(w io.Writer, src image.Image, quality int) error {
	if quality < 0 || quality > 100 {
		return errorOf(ErrUnsupported, "WebP quality %d (want 1 to 100, or 0 for lossless)", quality)
	}
	o := webp.Options{Quality: quality, Method: webp.DefaultMethod}
	if quality == 0 {
		// On a picture of 3 megapixels method 2 takes half the time of the default for a file 0.8 % larger.
		o = webp.Options{Lossless: true, Exact: true, Method: 2}
	}
	return webp.Encode(w, src, o)
}

// WriteFile replaces path by p through a temporary file in the same folder, as Save does. Errors start with the path.
func WriteFile(path string, p []byte) (err error) {
	tmp, err := createTemp(filepath.Dir(path))
	if err != nil {
		return fileError(path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
			err = fileError(path, err)
		}
	}()
	_, err = tmp.Write(p)
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return errors.Unwrap(err) // an *os.LinkError names the temporary file, which means nothing to the user
	}
	return nil
}

// createTemp opens a new hidden file in dir. os.CreateTemp would give it mode 0600; this one follows the umask.
func createTemp(dir string) (*os.File, error) {
	for i := 0; ; i++ {
		name := filepath.Join(dir, fmt.Sprintf(".fluxir-%d-%d.tmp", os.Getpid(), i))
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if !os.IsExist(err) {
			return f, err
		}
	}
}
