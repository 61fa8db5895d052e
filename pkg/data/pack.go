package data

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Photo is a photograph as training reads it: 8-bit RGB bytes, non-linear as in the file it came from. It may point into a mapped
// Pack, so its pixels must not be written.
type Photo struct {
	Name string
	W, H int
	Pix  []byte // [H, W, 3], len 3*W*H
}

// NewPhoto rounds a picture to 8 bits; alpha is dropped.
func NewPhoto(name string, m *Image) Photo {
	p := Photo{Name: name, W: m.W, H: m.H, Pix: make([]byte, len(m.Pix))}
	for i, v := range m.Pix {
		p.Pix[i] = uint8(quantise(v, 255))
	}
	return p
}

// Image returns the photograph as a picture of its own.
func (p Photo) Image() *Image {
	m := New(p.W, p.H)
	for i, v := range p.Pix {
		m.Pix[i] = unit8(v)
	}
	return m
}

// A pack file holds many photographs as raw bytes, so that opening a training set takes no time and its pixels live in the page
// cache, shared by every process that reads them (decoding 250 megapixels of PNG takes ten seconds and 750 MB per process).
//
//	bytes 0..7    magic "FXPHOTO1"
//	bytes 8..15   offset of the index, uint64 little endian
//	bytes 16..    pixels of each photograph, [H, W, 3] bytes, one after the other
//	index         JSON array of packEntry up to the end of the file
const (
	packMagic  = "FXPHOTO1"
	packHeader = 16
)

type packEntry struct {
	Name   string `json:"name"`
	W      int    `json:"w"`
	H      int    `json:"h"`
	Offset int64  `json:"offset"`
}

// Pack is an open pack file. Its photographs are valid until Close.
type Pack struct {
	Photos []Photo
	unmap  func() error
}

// OpenPack maps the pack file at path into memory. It fails when the file is not a whole pack.
func OpenPack(path string) (*Pack, error) {
	raw, unmap, err := mapFile(path)
	if err != nil {
		return nil, fmt.Errorf("data: open pack: %w", err)
	}
	photos, err := parsePack(raw)
	if err != nil {
		unmap()
		return nil, fmt.Errorf("data: open pack %s: %w", path, err)
	}
	return &Pack{Photos: photos, unmap: unmap}, nil
}

func parsePack(raw []byte) ([]Photo, error) {
	if len(raw) < packHeader || string(raw[:8]) != packMagic {
		return nil, fmt.Errorf("not a photo pack (magic %q missing)", packMagic)
	}
	at := binary.LittleEndian.Uint64(raw[8:])
	if at < packHeader || at > uint64(len(raw)) {
		return nil, fmt.Errorf("index offset %d lies outside the file of %d bytes", at, len(raw))
	}
	var index []packEntry
	if err := json.Unmarshal(raw[at:], &index); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	photos := make([]Photo, len(index))
	for i, e := range index {
		const maxSide = 1 << 20 // keeps 3*w*h far from overflow
		if e.W <= 0 || e.H <= 0 || e.W > maxSide || e.H > maxSide {
			return nil, fmt.Errorf("photograph %q: size %dx%d out of range", e.Name, e.W, e.H)
		}
		n := 3 * int64(e.W) * int64(e.H)
		if e.Offset < packHeader || e.Offset > int64(at) || n > int64(at)-e.Offset {
			return nil, fmt.Errorf("photograph %q: %d bytes at %d lie outside the pixels", e.Name, n, e.Offset)
		}
		photos[i] = Photo{Name: e.Name, W: e.W, H: e.H, Pix: raw[e.Offset : e.Offset+n : e.Offset+n]}
	}
	return photos, nil
}

// Close releases the mapping. The photographs must not be used afterwards.
func (p *Pack) Close() error {
	if p.unmap == nil {
		return nil
	}
	unmap := p.unmap
	p.unmap, p.Photos = nil, nil
	return unmap()
}

// Megapixels is the size of the set, in millions of pixels.
func Megapixels(photos []Photo) float64 {
	var n int
	for _, p := range photos {
		n += p.W * p.H
	}
	return float64(n) / 1e6
}

// WritePack writes n photographs, photograph i read by at(i), to a pack file at path; the zero Photo is left out. The file appears
// whole or not at all; only one photograph is in memory at a time.
func WritePack(path string, n int, at func(i int) (Photo, error)) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("data: write pack: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("data: write pack %s: %w", path, err)
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	offset := int64(packHeader)
	index := make([]packEntry, 0, n)
	w.Write(make([]byte, packHeader)) // a bufio.Writer keeps its first error for Flush
	for i := range n {
		p, err := at(i)
		if err != nil {
			return err
		}
		if p.W == 0 && p.Pix == nil {
			continue
		}
		if p.W <= 0 || p.H <= 0 || len(p.Pix) != 3*p.W*p.H {
			return fmt.Errorf("photograph %q: %d bytes for %dx%d pixels", p.Name, len(p.Pix), p.W, p.H)
		}
		w.Write(p.Pix)
		index = append(index, packEntry{p.Name, p.W, p.H, offset})
		offset += int64(len(p.Pix))
	}
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	w.Write(text)
	if err := w.Flush(); err != nil {
		return err
	}
	header := binary.LittleEndian.AppendUint64([]byte(packMagic), uint64(offset))
	if _, err := f.WriteAt(header, 0); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
