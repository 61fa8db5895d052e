package weights

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Entry is one tensor to be written. Write is called once, when its turn comes, and must write exactly the tensor's bytes, little-endian:
// a large tensor can be brought from its device, written and dropped before the next one.
type Entry struct {
	Name  string
	DType DType
	Shape []int
	Write func(w io.Writer) error
}

// Float32Entry is an entry that stores f32 values as d, which must be F32 or BF16 (rounded to nearest, ties to even).
// data is read when the entry is written; it is not copied.
func Float32Entry(name string, d DType, shape []int, data []float32) Entry {
	put := func(dst []byte, v float32) { binary.LittleEndian.PutUint32(dst, math.Float32bits(v)) }
	if d == BF16 {
		put = func(dst []byte, v float32) { binary.LittleEndian.PutUint16(dst, toBF16(v)) }
	}
	return Entry{name, d, shape, func(w io.Writer) error {
		if d != F32 && d != BF16 {
			return fmt.Errorf("cannot store f32 values as %v", d)
		}
		const chunk = 1 << 14
		buf := make([]byte, min(chunk, len(data))*d.Size())
		for part := range slices.Chunk(data, chunk) {
			for i, v := range part {
				put(buf[i*d.Size():], v)
			}
			if _, err := w.Write(buf[:len(part)*d.Size()]); err != nil {
				return err
			}
		}
		return nil
	}}
}

// Copy is an entry that writes a tensor's bytes as they are under its own name.
func Copy(t Tensor) Entry {
	return Entry{t.Name, t.DType, t.Shape, func(w io.Writer) error {
		_, err := w.Write(t.Data)
		return err
	}}
}

// Write writes a safetensors file, in one step as seen by readers: into a temporary file beside it, synced, then renamed over path.
// The bytes depend on the arguments only. The data starts at a multiple of 64 bytes; the format allows no holes, so tensors follow
// each other directly, larger elements first and then by name, which keeps every element aligned to its size.
func Write(path string, entries []Entry, metadata map[string]string) (err error) {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(filepath.Clean(dir), "."+base+".*.tmp")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close() // the first error is the one to report
			os.Remove(f.Name())
			err = fmt.Errorf("%s: %w", path, err)
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := Encode(w, entries, metadata); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil { // CreateTemp made it private
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Clean(dir))
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Encode writes a safetensors file to w, as [Write] does.
func Encode(w io.Writer, entries []Entry, metadata map[string]string) error {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.DType.Size(), a.DType.Size()), cmp.Compare(a.Name, b.Name))
	})
	header, err := encodeHeader(entries, metadata)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, e := range entries {
		size, _ := byteSize(e.DType, e.Shape)
		count := &countingWriter{w: w}
		if err := e.Write(count); err != nil {
			return fmt.Errorf("tensor %q: %w", e.Name, err)
		}
		if count.n != size {
			return fmt.Errorf("tensor %q: %w: %d bytes written, %v%v has %d", e.Name, ErrShape, count.n, e.DType, e.Shape, size)
		}
	}
	return nil
}

// encodeHeader returns the length word and the JSON, padded with spaces to a multiple of 64 bytes together.
func encodeHeader(entries []Entry, metadata map[string]string) ([]byte, error) {
	h := append(make([]byte, 8), '{')
	if len(metadata) > 0 {
		h = append(quote(h, metadataKey), ":{"...)
		for i, k := range slices.Sorted(maps.Keys(metadata)) {
			if !utf8.ValidString(k) || !utf8.ValidString(metadata[k]) {
				return nil, fmt.Errorf("metadata %q is not UTF-8", k)
			}
			if i > 0 {
				h = append(h, ',')
			}
			h = quote(append(quote(h, k), ':'), metadata[k])
		}
		h = append(h, '}')
	}
	seen, pos := map[string]bool{metadataKey: true}, 0
	for _, e := range entries {
		if seen[e.Name] || !utf8.ValidString(e.Name) {
			return nil, fmt.Errorf("tensor %q: name is reserved, used twice or not UTF-8", e.Name)
		}
		seen[e.Name] = true
		size, ok := byteSize(e.DType, e.Shape)
		if !ok || slices.ContainsFunc(e.Shape, func(n int) bool { return n < 0 }) || pos > math.MaxInt-size {
			return nil, fmt.Errorf("tensor %q: %w: %v", e.Name, ErrShape, e.Shape)
		}
		if len(h) > 9 {
			h = append(h, ',')
		}
		h = append(quote(h, e.Name), `:{"dtype":"`+e.DType.String()+`","shape":[`...)
		for i, n := range e.Shape {
			if i > 0 {
				h = append(h, ',')
			}
			h = strconv.AppendInt(h, int64(n), 10)
		}
		h = fmt.Appendf(h, `],"data_offsets":[%d,%d]}`, pos, pos+size)
		pos += size
	}
	h = append(h, '}')
	for len(h)%64 != 0 {
		h = append(h, ' ')
	}
	if len(h)-8 > maxHeader {
		return nil, fmt.Errorf("header of %d bytes, over the limit of %d", len(h)-8, maxHeader)
	}
	binary.LittleEndian.PutUint64(h, uint64(len(h)-8))
	return h, nil
}

// quote appends s as a JSON string; s is valid UTF-8, so Marshal cannot fail.
func quote(dst []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return append(dst, q...)
}

// countingWriter counts what passes through it.
type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += n
	return n, err
}
