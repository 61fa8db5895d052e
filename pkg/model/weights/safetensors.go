// Package weights reads and writes model files: safetensors (one file, or a folder in the Hugging Face layout), the configuration
// beside them, and the name tables that lead from a published file to fluxir's own parameter names. It is pure Go and knows no device.
package weights

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"syscall"
)

// maxHeader is the largest header in bytes, as in the reference implementation (github.com/huggingface/safetensors, tensor.rs).
const maxHeader = 100_000_000

// Tensor is a view of one stored tensor. Data aliases the file's map and is valid until the source is closed; it must not be written to.
type Tensor struct {
	Path  string // the file it came from, for messages
	Name  string
	DType DType
	Shape []int // row-major, outermost first; empty for a scalar
	Data  []byte
}

// Len returns the number of elements.
func (t Tensor) Len() int { return len(t.Data) / t.DType.Size() }

// File is an open safetensors file. Its methods may be called from several goroutines, except Close.
type File struct {
	path     string
	tensors  map[string]Tensor
	names    []string
	metadata map[string]string
	mapping  []byte // nil if the bytes belong to the caller
}

// Open maps a safetensors file read-only and checks it whole, without touching the tensors' pages.
// The file must not shrink while it is open: reading a page that is gone kills the process (SIGBUS). [Write] replaces files by renaming, which is safe.
// Errors: ErrTruncated, ErrCorrupt, ErrDType, or the operating system's.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fail(path, "", ErrCorrupt, "not a regular file")
	}
	if info.Size() < 8 { // also keeps an empty file away from mmap, which refuses it
		return nil, fail(path, "", ErrTruncated, "%d bytes, a safetensors file has at least 8", info.Size())
	}
	if info.Size() > math.MaxInt {
		return nil, fail(path, "", ErrCorrupt, "%d bytes do not fit the address space", info.Size())
	}
	mapping, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: mmap: %w", path, err)
	}
	file, err := parse(path, mapping)
	if err != nil {
		return nil, errors.Join(err, syscall.Munmap(mapping))
	}
	file.mapping = mapping
	return file, nil
}

// Parse reads a safetensors file from memory, such as an embedded model. The tensors alias data. name stands for the file in messages.
func Parse(name string, data []byte) (*File, error) { return parse(name, data) }

// Path returns the file's path, as given to Open or Parse.
func (f *File) Path() string { return f.path }

// Names returns the tensors' names, sorted.
func (f *File) Names() []string { return slices.Clone(f.names) }

// Metadata returns a copy of the header's __metadata__; empty if there is none.
func (f *File) Metadata() map[string]string { return maps.Clone(f.metadata) }

// Tensor returns the view of a tensor, or ErrMissingTensor.
func (f *File) Tensor(name string) (Tensor, error) {
	t, ok := f.tensors[name]
	if !ok {
		return Tensor{}, fail(f.path, name, ErrMissingTensor, "the file has no such tensor among its %d", len(f.names))
	}
	return t, nil
}

// Close unmaps the file; every view of it becomes invalid. Further calls do nothing.
func (f *File) Close() error {
	mapping := f.mapping
	f.mapping, f.tensors, f.names = nil, nil, nil
	if mapping == nil {
		return nil
	}
	return syscall.Munmap(mapping)
}

// parse checks data against the format and builds the views.
//
//	8 bytes: header length n, little-endian · n bytes: JSON, padded with spaces · the rest: tensor data, without holes
func parse(path string, data []byte) (*File, error) {
	if len(data) < 8 {
		return nil, fail(path, "", ErrTruncated, "%d bytes, a safetensors file has at least 8", len(data))
	}
	n := binary.LittleEndian.Uint64(data)
	if n > maxHeader {
		return nil, fail(path, "", ErrCorrupt, "header of %d bytes, over the limit of %d: not a safetensors file?", n, maxHeader)
	}
	if n > uint64(len(data)-8) {
		return nil, fail(path, "", ErrTruncated, "header of %d bytes in a file of %d", n, len(data))
	}
	entries, metadata, err := parseHeader(path, data[8:8+n])
	if err != nil {
		return nil, err
	}
	body := data[8+n:]
	if err := checkLayout(path, entries, len(body)); err != nil {
		return nil, err
	}
	f := &File{path: path, tensors: make(map[string]Tensor, len(entries)), metadata: metadata}
	for _, e := range entries {
		f.names = append(f.names, e.name)
		f.tensors[e.name] = Tensor{path, e.name, e.dtype, e.shape, body[e.begin:e.end:e.end]}
	}
	slices.Sort(f.names)
	return f, nil
}

// checkLayout sorts the entries by offset and checks that they cover the data of size bytes without overlap or hole.
func checkLayout(path string, entries []entry, size int) error {
	slices.SortFunc(entries, func(a, b entry) int {
		if a.begin != b.begin {
			return a.begin - b.begin
		}
		return a.end - b.end
	})
	pos := 0
	for _, e := range entries {
		switch {
		case e.end > size:
			return fail(path, e.name, ErrTruncated, "data_offsets [%d, %d] in %d bytes of data", e.begin, e.end, size)
		case e.begin < pos:
			return fail(path, e.name, ErrCorrupt, "data_offsets [%d, %d] overlap the tensor before, which ends at %d", e.begin, e.end, pos)
		case e.begin > pos:
			return fail(path, e.name, ErrCorrupt, "data_offsets [%d, %d] leave a hole of %d bytes before it", e.begin, e.end, e.begin-pos)
		}
		pos = e.end
	}
	if pos != size {
		return fail(path, "", ErrCorrupt, "%d bytes after the last tensor", size-pos)
	}
	return nil
}
