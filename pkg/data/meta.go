package data

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
)

const (
	maxProfileBytes = 16 << 20 // an inflated iCCP chunk above this is taken for an attack and ignored
	maxSegment      = 65533    // payload of a JPEG marker segment
)

// readMeta collects profile, EXIF and resolution from the container, and the orientation (1..8) that the pixels still need.
// Broken metadata are ignored: the picture is worth more than its label.
func readMeta(format Format, b []byte) (m Meta, orientation int) {
	var exif []byte
	switch format {
	case FormatJPEG:
		m.ICC, exif, m.DPI = jpegMeta(b)
	case FormatPNG:
		m.ICC, exif, m.DPI = pngMeta(b)
	case FormatWebP:
		m.ICC, exif = webpMeta(b)
	case FormatTIFF:
		d, ok := parseTIFF(b)
		if !ok {
			return m, 1
		}
		m.ICC = bytes.Clone(d.block(tagICC, 1))
		m.DPI = d.dpi()
		return m, d.short(tagOrientation) // its EXIF is spread over the file by offsets and is not kept
	}
	orientation, m.EXIF = uprightEXIF(exif)
	return m, orientation
}

// profileSpace returns the colour space that an ICC profile describes ("RGB ", "GRAY", "CMYK", ...), "" when it is no profile.
func profileSpace(icc []byte) string {
	if len(icc) < 128 || string(icc[36:40]) != "acsp" {
		return ""
	}
	return string(icc[16:20])
}

// jpegMeta walks the marker segments up to the first scan. The profile may be split over numbered APP2 segments.
func jpegMeta(b []byte) (icc, exif []byte, dpi float64) {
	const soi, sos, app0, app1, app2 = 0xd8, 0xda, 0xe0, 0xe1, 0xe2
	parts := map[byte][]byte{}
	var total byte
	for b = b[2:]; len(b) >= 4 && b[0] == 0xff && b[1] != sos; {
		if b[1] == 0xff { // fill byte
			b = b[1:]
			continue
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 2 || 2+n > len(b) {
			break
		}
		marker, p := b[1], b[4:2+n]
		b = b[2+n:]
		switch {
		case marker == app0 && len(p) >= 12 && string(p[:5]) == "JFIF\x00":
			dpi = float64(binary.BigEndian.Uint16(p[8:])) * map[byte]float64{1: 1, 2: 2.54}[p[7]]
		case marker == app1 && exif == nil && bytes.HasPrefix(p, []byte("Exif\x00\x00")):
			exif = p
		case marker == app2 && len(p) > 14 && string(p[:12]) == "ICC_PROFILE\x00":
			parts[p[12]], total = p[14:], p[13]
		}
	}
	for i := byte(1); i <= total && i != 0; i++ {
		if parts[i] == nil {
			return nil, exif, dpi
		}
		icc = append(icc, parts[i]...)
	}
	return icc, exif, dpi
}

// pngMeta walks the chunks of a PNG.
func pngMeta(b []byte) (icc, exif []byte, dpi float64) {
	const metre = 0.0254
	for b = b[8:]; len(b) >= 12; {
		n := int64(binary.BigEndian.Uint32(b))
		if n+12 > int64(len(b)) {
			break
		}
		p := b[8 : 8+n]
		switch string(b[4:8]) {
		case "iCCP":
			if _, z, ok := bytes.Cut(p, []byte{0}); ok && len(z) > 1 && z[0] == 0 {
				icc = inflate(z[1:])
			}
		case "eXIf":
			exif = p
		case "pHYs":
			if n == 9 && p[8] == 1 {
				dpi = float64(binary.BigEndian.Uint32(p)) * metre
			}
		}
		b = b[12+n:]
	}
	return icc, exif, dpi
}

// inflate returns the zlib stream's content, or nil when it is broken or too long.
func inflate(z []byte) []byte {
	r, err := zlib.NewReader(bytes.NewReader(z))
	if err != nil {
		return nil
	}
	p, err := io.ReadAll(io.LimitReader(r, maxProfileBytes+1))
	if err != nil || len(p) > maxProfileBytes {
		return nil
	}
	return p
}

// deflate returns p as a zlib stream.
func deflate(p []byte) []byte {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, _ = z.Write(p) // a bytes.Buffer does not fail
	_ = z.Close()
	return b.Bytes()
}

// riffChunks calls f for each chunk of a RIFF file; f returns false to stop.
func riffChunks(b []byte, f func(id string, p []byte) bool) {
	for b = b[12:]; len(b) >= 8; {
		n := int64(binary.LittleEndian.Uint32(b[4:]))
		if n+8 > int64(len(b)) || !f(string(b[:4]), b[8:8+n]) {
			return
		}
		b = b[min(8+n+n&1, int64(len(b))):]
	}
}

func webpMeta(b []byte) (icc, exif []byte) {
	riffChunks(b, func(id string, p []byte) bool {
		switch id {
		case "ICCP":
			icc = bytes.Clone(p)
		case "EXIF":
			exif = p
		}
		return true
	})
	return icc, exif
}

// addJPEGMeta inserts JFIF density, EXIF and profile after the start marker of the JPEG b, which has none. An EXIF block that does
// not fit in one segment is left out: the format has no way to split it.
func addJPEGMeta(b []byte, m Meta) []byte {
	out := append([]byte(nil), b[:2]...)
	segment := func(marker byte, parts ...[]byte) {
		p := bytes.Join(parts, nil)
		out = append(out, 0xff, marker, byte((len(p)+2)>>8), byte(len(p)+2))
		out = append(out, p...)
	}
	if d := math.Round(m.DPI); d >= 1 && d <= math.MaxUint16 {
		segment(0xe0, []byte("JFIF\x00\x01\x02\x01"), []byte{byte(int(d) >> 8), byte(int(d)), byte(int(d) >> 8), byte(int(d)), 0, 0})
	}
	if prefix := []byte("Exif\x00\x00"); m.EXIF != nil && len(m.EXIF)+len(prefix) <= maxSegment {
		segment(0xe1, prefix, m.EXIF)
	}
	const part = maxSegment - 14
	if total := (len(m.ICC) + part - 1) / part; total <= 255 {
		for i := range total {
			segment(0xe2, []byte("ICC_PROFILE\x00"), []byte{byte(i + 1), byte(total)}, m.ICC[i*part:min((i+1)*part, len(m.ICC))])
		}
	}
	return append(out, b[2:]...)
}

// addPNGMeta inserts iCCP, pHYs and eXIf after the header chunk of the PNG b, which has none of them.
func addPNGMeta(b []byte, m Meta) []byte {
	const header = 8 + 25 // signature, IHDR
	out := append([]byte(nil), b[:header]...)
	chunk := func(id string, p []byte) {
		out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
		body := append([]byte(id), p...)
		out = append(out, body...)
		out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(body))
	}
	if m.ICC != nil {
		chunk("iCCP", append([]byte("ICC profile\x00\x00"), deflate(m.ICC)...))
	}
	if d := math.Round(m.DPI / 0.0254); d >= 1 && d <= math.MaxInt32 {
		p := binary.BigEndian.AppendUint32(nil, uint32(d))
		chunk("pHYs", append(binary.BigEndian.AppendUint32(p, uint32(d)), 1))
	}
	if m.EXIF != nil {
		chunk("eXIf", m.EXIF)
	}
	return append(out, b[header:]...)
}

// addWebPMeta adds profile and EXIF to the WebP b of w by h pixels, which makes it an extended one.
func addWebPMeta(b []byte, w, h int, alpha bool, m Meta) []byte {
	if m.ICC == nil && m.EXIF == nil {
		return b
	}
	out := []byte("RIFF\x00\x00\x00\x00WEBP")
	chunk := func(id string, p []byte) {
		out = append(out, id...)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(p)))
		out = append(out, p...)
		if len(p)&1 == 1 {
			out = append(out, 0)
		}
	}
	var flags byte
	for bit, set := range map[byte]bool{1 << 5: m.ICC != nil, 1 << 4: alpha, 1 << 3: m.EXIF != nil} {
		if set {
			flags |= bit
		}
	}
	w, h = w-1, h-1
	chunk("VP8X", []byte{flags, 0, 0, 0, byte(w), byte(w >> 8), byte(w >> 16), byte(h), byte(h >> 8), byte(h >> 16)})
	if m.ICC != nil {
		chunk("ICCP", m.ICC)
	}
	riffChunks(b, func(id string, p []byte) bool {
		if id != "VP8X" {
			chunk(id, p)
		}
		return true
	})
	if m.EXIF != nil {
		chunk("EXIF", m.EXIF)
	}
	binary.LittleEndian.PutUint32(out[4:], uint32(len(out)-8))
	return out
}
