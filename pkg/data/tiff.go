package data

import (
	"encoding/binary"
	"image"
	"io"
	"math"
	"slices"
)

// Field types of TIFF 6.0.
const (
	tiffShort     = 3
	tiffLong      = 4
	tiffRational  = 5
	tiffUndefined = 7
)

// encodeTIFF writes src (as made by toGo) as a little-endian TIFF of one deflated strip: grey or RGB of 8 or 16 bit, with alpha when
// it is used. golang.org/x/image/tiff writes opaque RGB with a fourth channel and no profile, hence this one.
func encodeTIFF(w io.Writer, src image.Image, alpha bool, m Meta) error {
	size := src.Bounds().Size()
	samples, depth, photometric := 3, 8, uint32(2) // RGB
	if alpha {
		samples = 4
	}
	var pix []byte
	switch s := src.(type) {
	case *image.Gray:
		samples, photometric = 1, 1
		pix = s.Pix
	case *image.Gray16:
		samples, photometric, depth = 1, 1, 16
		pix = swapped(s.Pix)
	case *image.NRGBA:
		pix = dropAlpha(s.Pix, 1, samples)
	case *image.NRGBA64:
		depth = 16
		pix = swapped(dropAlpha(s.Pix, 2, samples))
	}
	strip := deflate(pix)
	if int64(len(strip))+int64(len(m.ICC))+1024 > math.MaxUint32 {
		return errorOf(ErrTooLarge, "a TIFF cannot exceed 4 GiB")
	}
	dpi := m.DPI
	if !(dpi >= 1 && dpi < 1e6) {
		dpi = 72
	}
	le := binary.LittleEndian
	resolution := le.AppendUint32(le.AppendUint32(nil, uint32(math.Round(dpi*1000))), 1000)

	const head = 8 // the strip follows the header, then the directory
	d := tiffWriter{}
	d.value(0x100, tiffLong, uint32(size.X))
	d.value(0x101, tiffLong, uint32(size.Y))
	if samples == 1 {
		d.value(0x102, tiffShort, uint32(depth))
	} else {
		d.block(0x102, tiffShort, samples, slices.Repeat([]byte{byte(depth), 0}, samples))
	}
	d.value(0x103, tiffShort, 8) // deflate
	d.value(0x106, tiffShort, photometric)
	d.value(0x111, tiffLong, head)
	d.value(0x115, tiffShort, uint32(samples))
	d.value(0x116, tiffLong, uint32(size.Y))
	d.value(0x117, tiffLong, uint32(len(strip)))
	d.block(tagXResolution, tiffRational, 1, resolution)
	d.block(tagXResolution+1, tiffRational, 1, resolution)
	d.value(tagResolutionUnit, tiffShort, 2) // inch
	if alpha {
		d.value(0x152, tiffShort, 2) // straight alpha
	}
	if m.ICC != nil {
		d.block(tagICC, tiffUndefined, len(m.ICC), m.ICC)
	}
	strip = append(strip, make([]byte, len(strip)&1)...)
	out := le.AppendUint32([]byte("II*\x00"), uint32(head+len(strip)))
	out = append(out, strip...)
	_, err := w.Write(append(out, d.bytes(len(out))...))
	return err
}

// tiffWriter collects the fields of a directory, in ascending order of tags.
type tiffWriter struct {
	fields []tiffField
}

type tiffField struct {
	tag, typ uint16
	n        int
	value    uint32
	block    []byte // nil when value holds it all
}

func (d *tiffWriter) value(tag, typ uint16, v uint32) {
	d.fields = append(d.fields, tiffField{tag, typ, 1, v, nil})
}

// block adds a field of n values that takes more than four bytes.
func (d *tiffWriter) block(tag, typ uint16, n int, p []byte) {
	d.fields = append(d.fields, tiffField{tag, typ, n, 0, p})
}

// bytes returns the directory and its blocks for the offset at in the file.
func (d *tiffWriter) bytes(at int) []byte {
	le := binary.LittleEndian
	out := le.AppendUint16(nil, uint16(len(d.fields)))
	blockAt := at + 2 + 12*len(d.fields) + 4
	var blocks []byte
	for _, f := range d.fields {
		if f.block != nil {
			f.value = uint32(blockAt + len(blocks))
			blocks = append(blocks, f.block...)
			blocks = append(blocks, make([]byte, len(f.block)&1)...)
		}
		out = le.AppendUint16(out, f.tag)
		out = le.AppendUint16(out, f.typ)
		out = le.AppendUint32(out, uint32(f.n))
		out = le.AppendUint32(out, f.value)
	}
	out = append(out, 0, 0, 0, 0) // no further directory
	return append(out, blocks...)
}

// dropAlpha returns the first samples of each pixel of four; size is the bytes of a sample.
func dropAlpha(pix []uint8, size, samples int) []uint8 {
	if samples == 4 {
		return pix
	}
	out := make([]uint8, 0, len(pix)/4*samples)
	for i := 0; i < len(pix); i += 4 * size {
		out = append(out, pix[i:i+samples*size]...)
	}
	return out
}

// swapped returns 16-bit samples in the other byte order.
func swapped(pix []uint8) []uint8 {
	out := make([]uint8, len(pix))
	for i := 0; i+1 < len(pix); i += 2 {
		out[i], out[i+1] = pix[i+1], pix[i]
	}
	return out
}
