package data

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// TIFF tags that matter here; EXIF blocks are TIFF structures.
const (
	tagOrientation    = 0x0112
	tagXResolution    = 0x011a
	tagResolutionUnit = 0x0128
	tagICC            = 0x8773
)

// tiffDir is the first directory of a TIFF structure.
type tiffDir struct {
	b       []byte
	order   binary.ByteOrder
	entries []byte // 12 bytes each
	next    int    // offset of the link to the next directory
}

// parseTIFF finds the first directory of b; ok is false when b is not a TIFF structure or the directory leaves it.
func parseTIFF(b []byte) (d tiffDir, ok bool) {
	d.b = b
	switch {
	case bytes.HasPrefix(b, []byte("II*\x00")):
		d.order = binary.LittleEndian
	case bytes.HasPrefix(b, []byte("MM\x00*")):
		d.order = binary.BigEndian
	default:
		return d, false
	}
	if len(b) < 8 {
		return d, false
	}
	off := int64(d.order.Uint32(b[4:]))
	if off+2 > int64(len(b)) {
		return d, false
	}
	start := off + 2
	end := start + 12*int64(d.order.Uint16(b[off:]))
	if end+4 > int64(len(b)) {
		return d, false
	}
	d.entries, d.next = b[start:end], int(end)
	return d, true
}

// find returns the 12-byte entry of a tag, or nil.
func (d tiffDir) find(tag uint16) []byte {
	for e := d.entries; len(e) >= 12; e = e[12:] {
		if d.order.Uint16(e) == tag {
			return e[:12]
		}
	}
	return nil
}

// short returns the SHORT value of a tag, or 0.
func (d tiffDir) short(tag uint16) int {
	const typeShort = 3
	e := d.find(tag)
	if e == nil || d.order.Uint16(e[2:]) != typeShort || d.order.Uint32(e[4:]) != 1 {
		return 0
	}
	return int(d.order.Uint16(e[8:]))
}

// block returns the bytes an entry points to, size bytes for each of its values, or nil when they leave the file.
func (d tiffDir) block(tag uint16, size int64) []byte {
	e := d.find(tag)
	if e == nil {
		return nil
	}
	n, off := size*int64(d.order.Uint32(e[4:])), int64(d.order.Uint32(e[8:]))
	if n <= 4 || off+n > int64(len(d.b)) {
		return nil
	}
	return d.b[off : off+n]
}

// dpi returns the horizontal resolution in dots per inch, 0 when unknown.
func (d tiffDir) dpi() float64 {
	r := d.block(tagXResolution, 8)
	if len(r) < 8 || d.order.Uint32(r[4:]) == 0 {
		return 0
	}
	v := float64(d.order.Uint32(r)) / float64(d.order.Uint32(r[4:]))
	switch d.short(tagResolutionUnit) {
	case 2: // inch
		return v
	case 3: // centimetre
		return v * 2.54
	}
	return 0
}

// uprightEXIF returns the orientation that an EXIF block asks for and a copy of the block that asks for none. The copy also loses
// its link to the thumbnail directory, because the thumbnail shows the picture as it was. A block that cannot be parsed gives 1, nil.
func uprightEXIF(exif []byte) (orientation int, upright []byte) {
	exif = bytes.TrimPrefix(exif, []byte("Exif\x00\x00"))
	d, ok := parseTIFF(slices.Clone(exif))
	if !ok {
		return 1, nil
	}
	orientation = 1
	if o := d.short(tagOrientation); o >= 1 && o <= 8 {
		orientation = o
		d.order.PutUint16(d.find(tagOrientation)[8:], 1)
	}
	clear(d.b[d.next : d.next+4])
	return orientation, d.b
}
