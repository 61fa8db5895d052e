package photos

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"image/jpeg"
	"io"
	"unicode/utf16"
)

// largestJPEG returns the bytes from the start of the JPEG with most pixels among those stored whole inside raw (an Enlightenment
// .edj keeps a picture in a dozen sizes). The slice runs to the end of raw: a JPEG decoder stops by itself.
func largestJPEG(raw []byte) ([]byte, error) {
	var best []byte
	most := 0
	for at := 0; ; at += 3 {
		i := bytes.Index(raw[at:], []byte{0xFF, 0xD8, 0xFF})
		if i < 0 {
			break
		}
		at += i
		if c, err := jpeg.DecodeConfig(bytes.NewReader(raw[at:])); err == nil && c.Width*c.Height > most {
			best, most = raw[at:], c.Width*c.Height
		}
	}
	if best == nil {
		return nil, errors.New("no JPEG inside")
	}
	return best, nil
}

// readRCC returns the files of a binary Qt resource container, by path without leading slash.
//
// Layout, all big endian: "qres", version, offsets of the tree, the data and the names (uint32 each). A tree node is
// name offset (uint32), flags (uint16: 1 zlib, 2 folder, 4 zstd), then for a folder: child count, first child (uint32 each); for a
// file: country, language (uint16 each), data offset (uint32); version 2 appends 8 bytes of time. A name is length (uint16), hash
// (uint32), UTF-16. A datum is length (uint32) and bytes; a zlib datum starts with its unpacked length (uint32).
func readRCC(raw []byte) (files map[string][]byte, err error) {
	defer func() {
		if r := recover(); r != nil { // an offset of a damaged file points outside it
			files, err = nil, fmt.Errorf("damaged Qt resource container: %v", r)
		}
	}()
	if len(raw) < 20 || string(raw[:4]) != "qres" {
		return nil, errors.New("not a Qt resource container")
	}
	u16 := func(at uint32) uint32 { return uint32(binary.BigEndian.Uint16(raw[at:])) }
	u32 := func(at uint32) uint32 { return binary.BigEndian.Uint32(raw[at:]) }
	version, tree, data, names := u32(4), u32(8), u32(12), u32(16)
	nodeSize := uint32(14)
	if version >= 2 {
		nodeSize = 22
	}
	files = map[string][]byte{}
	var walk func(node uint32, dir string, depth int) error
	walk = func(node uint32, dir string, depth int) error {
		if depth > 64 {
			return errors.New("damaged Qt resource container: folders too deep")
		}
		at := tree + node*nodeSize
		name := dir
		if node > 0 {
			p := names + u32(at)
			units := make([]uint16, u16(p))
			for i := range units {
				units[i] = uint16(u16(p + 6 + 2*uint32(i)))
			}
			name += "/" + string(utf16.Decode(units))
		}
		flags := u16(at + 4)
		if flags&2 != 0 {
			for i := range u32(at + 6) {
				if err := walk(u32(at+10)+i, name, depth+1); err != nil {
					return err
				}
			}
			return nil
		}
		p := data + u32(at+10)
		body := raw[p+4 : p+4+u32(p)]
		if flags&4 != 0 {
			return fmt.Errorf("%s: zstd entry not supported", name)
		}
		if flags&1 != 0 {
			z, err := zlib.NewReader(bytes.NewReader(body[4:]))
			if err == nil {
				body, err = io.ReadAll(z)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		files[name[1:]] = body
		return nil
	}
	return files, walk(0, "", 0)
}
