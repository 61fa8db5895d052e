package data

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"image"
	"io"
	"math"
	"slices"
)

// encodeTIFF writes src (as made by toGo) as a little-endian TIFF of one deflated strip: grey or RGB of 8 or 16 bit, with alpha when
// it is used. golang.org/x/image/tiff writes opaque RGB with a fourth channel and no profile, hence this one.
func encodeTIFF(w io.Writer, src image.Image, alpha bool, m Meta) error {
	size := src.Bounds().Size()
	var strip bytes.Buffer
	z := zlib.NewWriter(&strip)
	samples, depth := 3, 8
	photometric := uint32(2) // RGB
	if alpha {
		samples = 4
	}
	switch s := src.(type) {
	case *image.Gray:
		samples, photometric = 1, 1
		z.Write(s.Pix) // a bytes.Buffer does not fail
	case *image.Gray16:
		samples, photometric, depth = 1, 1, 16
		z.Write(swapped(s.Pix))
	case *image.NRGBA:
		z.Write(dropAlpha(s.Pix, 1, samples))
	case *image.NRGBA64:
		depth = 16
		z.Write(swapped(dropAlpha(s.Pix, 2, samples)))
	}
	z.Close()

	const short, long, rational, undefined = 3, 4, 5, 7
	le := binary.LittleEndian
	var entries, extra []byte
	count := 12
	if alpha {
		count++
	}
	if m.ICC != nil {
		count++
	}
	if int64(strip.Len())+int64(len(m.ICC))+1024 > math.MaxUint32 {
		return errorOf(ErrTooLarge, "a TIFF cannot exceed 4 GiB")
	}
	dirAt := 8 + strip.Len() + strip.Len()&1
	extraAt := dirAt + 2 + 12*count + 4
	entry := func(tag, typ uint16, n int, value uint32) {
		entries = le.AppendUint16(entries, tag)
		entries = le.AppendUint16(entries, typ)
		entries = le.AppendUint32(entries, uint32(n))
		entries = le.AppendUint32(entries, value)
	}
	block := func(tag, typ uint16, n int, p []byte) {
		entry(tag, typ, n, uint32(extraAt+len(extra)))
		extra = append(extra, p...)
	}
	bits := slices.Repeat([]byte{byte(depth), 0}, samples)
	dpi := m.DPI
	if !(dpi >= 1 && dpi < 1e6) {
		dpi = 72
	}
	resolution := le.AppendUint32(le.AppendUint32(nil, uint32(math.Round(dpi*1000))), 1000)

	entry(0x100, long, 1, uint32(size.X))
	entry(0x101, long, 1, uint32(size.Y))
	if samples == 1 {
		entry(0x102, short, 1, uint32(depth))
	} else {
		block(0x102, short, samples, bits)
	}
	entry(0x103, short, 1, 8) // deflate
	entry(0x106, short, 1, photometric)
	entry(0x111, long, 1, 8) // the strip follows the header
	entry(0x115, short, 1, uint32(samples))
	entry(0x116, long, 1, uint32(size.Y))
	entry(0x117, long, 1, uint32(strip.Len()))
	block(tagXResolution, rational, 1, resolution)
	block(tagXResolution+1, rational, 1, resolution)
	entry(tagResolutionUnit, short, 1, 2)
	if alpha {
		entry(0x152, short, 1, 2) // straight alpha
	}
	if m.ICC != nil {
		block(tagICC, undefined, len(m.ICC), m.ICC)
	}
	out := le.AppendUint32([]byte("II*\x00"), uint32(dirAt))
	out = append(out, strip.Bytes()...)
	out = append(out, make([]byte, strip.Len()&1)...)
	out = le.AppendUint16(out, uint16(count))
	out = append(out, entries...)
	out = append(out, 0, 0, 0, 0) // no further directory
	_, err := w.Write(append(out, extra...))
	return err
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
