package data

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"os"

	"golang.org/x/image/tiff"
	"golang.org/x/image/webp"
)

const (
	// DefaultMaxPixels is the largest picture that is decoded unless a Decoder says otherwise: 64 megapixels.
	DefaultMaxPixels = 64_000_000
	maxFileBytes     = 1 << 30 // an uncompressed 64-megapixel RGBA TIFF of 16 bit has half of this
	sniffBytes       = 16
)

// Decoder holds the limits of reading. The zero value is ready to use.
type Decoder struct {
	MaxPixels int // W*H above this is ErrTooLarge, checked before pixels are allocated; 0 = DefaultMaxPixels
}

// Load reads the image file at path with the default limits; see Decoder.Load.
func Load(path string) (*Image, error) { return Decoder{}.Load(path) }

// Decode reads an image with the default limits; see Decoder.Decode.
func Decode(r io.Reader) (*Image, error) { return Decoder{}.Decode(r) }

// Load reads the image file at path as Decode does. Errors start with the path.
func (d Decoder) Load(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	m, err := d.Decode(f)
	if err != nil {
		return nil, fileError(path, err)
	}
	return m, nil
}

// Decode reads one JPEG, PNG, WebP (still) or TIFF (first page) image, told apart by content. Grey, palette and CMYK become RGB;
// EXIF orientation is applied; 16-bit samples keep their precision; 8-bit samples become exact multiples of 1/255.
// An alpha channel that is opaque everywhere is dropped. Chroma is interpolated as libjpeg and libwebp do by default.
// Errors are of the kinds ErrNotImage, ErrTruncated, ErrCorrupt, ErrTooLarge and ErrUnsupported, or those of r.
func (d Decoder) Decode(r io.Reader) (*Image, error) {
	head := make([]byte, sniffBytes)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	head = head[:n]
	format, err := sniff(head)
	if err != nil {
		return nil, err
	}
	rest, err := io.ReadAll(io.LimitReader(r, maxFileBytes))
	if err != nil {
		return nil, err
	}
	if len(rest) == maxFileBytes {
		return nil, errorOf(ErrTooLarge, "file exceeds %d MiB", maxFileBytes>>20)
	}
	return d.decode(format, append(head, rest...))
}

// sniff tells the format from the first bytes of a file (sniffBytes of them, fewer at the end of the file).
func sniff(b []byte) (Format, error) {
	is := func(at int, sig string) bool { return len(b) >= at+len(sig) && string(b[at:at+len(sig)]) == sig }
	other := ""
	switch {
	case len(b) == 0:
		return FormatUnknown, errorOf(ErrNotImage, "empty file")
	case is(0, "\xff\xd8\xff"):
		return FormatJPEG, nil
	case is(0, "\x89PNG\r\n\x1a\n"):
		return FormatPNG, nil
	case is(0, "RIFF") && is(8, "WEBP"):
		return FormatWebP, nil
	case is(0, "II*\x00"), is(0, "MM\x00*"):
		return FormatTIFF, nil
	case is(0, "II+\x00"), is(0, "MM\x00+"):
		other = "BigTIFF"
	case is(0, "GIF87a"), is(0, "GIF89a"):
		other = "GIF"
	case is(0, "BM") && is(6, "\x00\x00\x00\x00"):
		other = "BMP"
	case is(4, "ftypavif"), is(4, "ftypavis"):
		other = "AVIF"
	case is(4, "ftyphei"), is(4, "ftyphev"), is(4, "ftypmif1"), is(4, "ftypmsf1"):
		other = "HEIF"
	case is(0, "\xff\x0a"), is(0, "\x00\x00\x00\x0cJXL "):
		other = "JPEG XL"
	case is(0, "\x00\x00\x00\x0cjP  "):
		other = "JPEG 2000"
	case is(0, "8BPS"):
		other = "PSD"
	default:
		return FormatUnknown, errorOf(ErrNotImage, "not an image (want JPEG, PNG, WebP or TIFF)")
	}
	return FormatUnknown, errorOf(ErrUnsupported, "%s is not supported (want JPEG, PNG, WebP or TIFF)", other)
}

// codecs are the pixel decoders; the containers' metadata are read by meta.go.
var codecs = map[Format]struct {
	config func(io.Reader) (image.Config, error)
	pixels func(io.Reader) (image.Image, error)
}{
	FormatJPEG: {jpeg.DecodeConfig, jpeg.Decode},
	FormatPNG:  {png.DecodeConfig, png.Decode},
	FormatWebP: {webp.DecodeConfig, webp.Decode},
	FormatTIFF: {tiff.DecodeConfig, tiff.Decode},
}

// decode reads the complete file b of the given format.
func (d Decoder) decode(format Format, b []byte) (*Image, error) {
	if format == FormatWebP {
		if err := d.checkWebP(b); err != nil {
			return nil, err
		}
	}
	codec := codecs[format]
	r := &watched{r: bytes.NewReader(b)}
	cfg, err := codec.config(r)
	if err != nil {
		return nil, codecError(format, err, r.starved)
	}
	if err := d.checkSize(format, cfg.Width, cfg.Height); err != nil {
		return nil, err
	}
	r = &watched{r: bytes.NewReader(b)}
	src, err := codec.pixels(r)
	if err != nil {
		return nil, codecError(format, err, r.starved)
	}
	m := fromGo(src, format)
	meta, orientation := readMeta(format, b)
	meta.Format = format
	meta.BitDepth, meta.Gray = sourceKind(src, format, b)
	if space := profileSpace(meta.ICC); space != "RGB " && !(meta.Gray && space == "GRAY") {
		meta.ICC = nil // a CMYK or Lab profile does not describe the RGB values that we hold
	}
	m.Meta = meta
	return m.Orient(orientation), nil
}

// checkSize compares what a header promises with the limit.
func (d Decoder) checkSize(format Format, w, h int) error {
	limit := d.MaxPixels
	if limit <= 0 {
		limit = DefaultMaxPixels
	}
	if w <= 0 || h <= 0 {
		return errorOf(ErrCorrupt, "corrupt %s: size %dx%d", format, w, h)
	}
	if w > limit/h {
		return errorOf(ErrTooLarge, "%s of %dx%d pixels exceeds the limit of %.4g megapixels", format, w, h, float64(limit)/1e6)
	}
	return nil
}

// checkWebP rejects what the decoder has no clear word for: files shorter than their header says, animations, huge canvases.
func (d Decoder) checkWebP(b []byte) error {
	if len(b) < 20 || int64(binary.LittleEndian.Uint32(b[4:]))+8 > int64(len(b)) {
		return errorOf(ErrTruncated, "truncated WebP")
	}
	if string(b[12:16]) != "VP8X" || len(b) < 30 {
		return nil
	}
	const animation = 1 << 1
	if b[20]&animation != 0 {
		return errorOf(ErrUnsupported, "unsupported WebP: animation")
	}
	side := func(p []byte) int { return 1 + (int(p[0]) | int(p[1])<<8 | int(p[2])<<16) }
	return d.checkSize(FormatWebP, side(b[24:]), side(b[27:]))
}

// watched is a file in memory that notes whether a codec asked for bytes past its end: an error after that means a truncated file,
// whatever the codec calls it.
type watched struct {
	r       *bytes.Reader
	starved bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.starved = w.starved || err == io.EOF
	return n, err
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.r.ReadAt(p, off)
	w.starved = w.starved || err == io.EOF
	return n, err
}

// sourceKind tells the sample depth (8 or 16) and whether the file holds a single colour channel.
func sourceKind(src image.Image, format Format, b []byte) (depth int, gray bool) {
	depth = 8
	switch src.(type) {
	case *image.Gray16, *image.RGBA64, *image.NRGBA64:
		depth = 16
	}
	switch src.(type) {
	case *image.Gray, *image.Gray16:
		gray = true
	}
	if format == FormatPNG {
		const colourType = 25 // in IHDR; grey with alpha or tRNS is decoded to NRGBA
		gray = b[colourType] == 0 || b[colourType] == 4
	}
	return depth, gray
}

// Orient undoes an EXIF orientation (1..8; anything else counts as 1): 3 turns by half, 5 transposes, 7 does both. Those three undo themselves, 6 and 8
// undo each other.
func (m *Image) Orient(o int) *Image {
	switch o {
	case 2:
		return m.FlipH()
	case 3:
		return m.Rot90(2)
	case 4:
		return m.FlipV()
	case 5:
		return m.Transpose()
	case 6:
		return m.Rot90(1)
	case 7:
		return m.Rot90(2).Transpose()
	case 8:
		return m.Rot90(3)
	}
	return m
}
