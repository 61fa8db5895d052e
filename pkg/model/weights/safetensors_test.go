package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// raw makes a file from a header text, as it is, and data bytes.
func raw(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

// broken are files that must be refused, with the kind of error and a word of its cause.
var broken = []struct {
	name  string
	file  []byte
	kind  error
	cause string
}{
	{"empty", nil, ErrTruncated, "at least 8"},
	{"short length word", []byte{1, 2, 3}, ErrTruncated, "at least 8"},
	{"header past the end", raw(`{}`, 0)[:9], ErrTruncated, "header of 2 bytes"},
	{"huge header", binary.LittleEndian.AppendUint64(nil, maxHeader+1), ErrCorrupt, "limit"},
	{"length word over int64", binary.LittleEndian.AppendUint64(nil, math.MaxUint64), ErrCorrupt, "limit"},
	{"empty header", raw("", 0), ErrCorrupt, "begin with"},
	{"leading space", raw(" {}", 0), ErrCorrupt, "begin with"},
	{"an array", raw("[]", 0), ErrCorrupt, "begin with"},
	{"not JSON", raw("{abc}", 0), ErrCorrupt, "header"},
	{"open JSON", raw(`{"a":{"dtype":"F32"`, 0), ErrCorrupt, "EOF"},
	{"two objects", raw(`{}{}`, 0), ErrCorrupt, "follows"},
	{"not UTF-8", raw("{\"\xff\":1}", 0), ErrCorrupt, "UTF-8"},
	{"tensor is a number", raw(`{"a":1}`, 0), ErrCorrupt, "wants {"},
	{"duplicate tensor", raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), ErrCorrupt, `duplicate key "a"`},
	{"duplicate field", raw(`{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}`, 1), ErrCorrupt, `duplicate key "shape"`},
	{"duplicate metadata", raw(`{"__metadata__":{"k":"1","k":"2"}}`, 0), ErrCorrupt, `duplicate key "k"`},
	{"metadata not a string", raw(`{"__metadata__":{"k":1}}`, 0), ErrCorrupt, "wants a string"},
	{"unknown field", raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}`, 1), ErrCorrupt, `unknown field "x"`},
	{"no shape", raw(`{"a":{"dtype":"U8","data_offsets":[0,1]}}`, 1), ErrCorrupt, "wants dtype"},
	{"no offsets", raw(`{"a":{"dtype":"U8","shape":[1]}}`, 1), ErrCorrupt, "wants dtype"},
	{"three offsets", raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}`, 1), ErrCorrupt, "wants dtype"},
	{"offsets reversed", raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}`, 1), ErrCorrupt, "begin <= end"},
	{"negative offset", raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}`, 1), ErrCorrupt, "-1"},
	{"fractional size", raw(`{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}`, 1), ErrCorrupt, "1.5"},
	{"exponent", raw(`{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}`, 1), ErrCorrupt, "1e0"},
	{"negative size", raw(`{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}`, 1), ErrCorrupt, "-1"},
	{"size over int64", raw(`{"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]}}`, 1), ErrCorrupt, "9223372036854775808"},
	{"shape overflows", raw(`{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0), ErrCorrupt, "overflows"},
	{"shape overflows in bytes", raw(`{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}}`, 0), ErrCorrupt, "overflows"},
	{"size does not fit the shape", raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,7]}}`, 7), ErrCorrupt, "hold 7 bytes, F32[2] has 8"},
	{"wrong dtype for the size", raw(`{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,8]}}`, 8), ErrCorrupt, "hold 8 bytes"},
	{"unknown dtype", raw(`{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}`, 1), ErrDType, `"Q9"`},
	{"float8", raw(`{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}`, 1), ErrDType, `"F8_E4M3"`},
	{"data cut", raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 3), ErrTruncated, "in 3 bytes of data"},
	{"data too long", raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 5), ErrCorrupt, "1 bytes after"},
	{"data without tensors", raw(`{}`, 1), ErrCorrupt, "1 bytes after"},
	{"overlap", raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, 6), ErrCorrupt, "overlap"},
	{"the same bytes twice", raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4), ErrCorrupt, "overlap"},
	{"hole in front", raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}}`, 5), ErrCorrupt, "hole of 1 bytes"},
	{"hole between", raw(`{"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`, 6), ErrCorrupt, "hole of 2 bytes"},
}

func TestBrokenFiles(t *testing.T) {
	for _, c := range broken {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.safetensors")
			if err := os.WriteFile(path, c.file, 0o644); err != nil {
				t.Fatal(err)
			}
			_, fromFile := Open(path)
			_, fromMemory := Parse(path, c.file)
			for _, err := range []error{fromFile, fromMemory} {
				if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.cause) || !strings.HasPrefix(err.Error(), path+": ") {
					t.Errorf("got %v, want %v with %q, naming the file first", err, c.kind, c.cause)
				}
			}
		})
	}
}

func TestOpenOrdinaryErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a folder: %v", err)
	}
}

// sample is a small model with every element type and odd sizes.
func sample() ([]Entry, map[string]string) {
	ints := func(name string, d DType, shape []int, b ...byte) Entry {
		return Entry{name, d, shape, func(w io.Writer) error { _, err := w.Write(b); return err }}
	}
	return []Entry{
		Float32Entry("z.f32", F32, []int{2, 3}, []float32{0, 1, -2.5, float32(math.Inf(1)), 1e-45, 3.4e38}),
		Float32Entry("a.bf16", BF16, []int{3}, []float32{1, 1.00390625, 1.01171875}),
		Float32Entry("scalar", F32, nil, []float32{7}),
		Float32Entry("none", F32, []int{0, 5}, nil),
		ints("i8", I8, []int{3}, 1, 0xff, 0x80),
		ints("u8", U8, []int{1, 3}, 1, 0xff, 0x80),
		ints("bool", Bool, []int{2}, 1, 0),
		ints("i16", I16, []int{1}, 0xfe, 0xff),
		ints("i32", I32, []int{1}, 0xfe, 0xff, 0xff, 0xff),
		ints("i64", I64, []int{1}, 0, 0, 0, 0, 0, 0, 0, 0x80),
		ints("f64", F64, []int{1}, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f),
		ints("f16", F16, []int{2}, 0x01, 0x00, 0x00, 0xc0),
	}, map[string]string{"format_version": "1", "licence": "<none> & \"more\"", "config": `{"r": 32}`}
}

func TestWriteAndRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model.safetensors")
	entries, metadata := sample()
	if err := Write(path, entries, metadata); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Metadata(); len(got) != 3 || got["licence"] != metadata["licence"] || got["config"] != metadata["config"] {
		t.Errorf("metadata = %v", got)
	}
	if names := f.Names(); len(names) != len(entries) || !slices.IsSorted(names) {
		t.Errorf("names = %v", names)
	}
	for name, want := range map[string][]float64{
		"z.f32": {0, 1, -2.5, math.Inf(1), float64(float32(1e-45)), float64(float32(3.4e38))},
		// 1 + 2^-8 lies halfway between bf16 neighbours and goes to the even one below, 1 + 3·2^-8 to the one above.
		"a.bf16": {1, 1, 1.015625}, "scalar": {7}, "none": {}, "f64": {1}, "f16": {0x1p-24, -2},
	} {
		v, err := f.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Float64s(v); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s = %v, %v, want %v", name, got, err, want)
		}
		if _, err := Int64s(v); !errors.Is(err, ErrDType) {
			t.Errorf("%s as integers: %v", name, err)
		}
	}
	for name, want := range map[string][]int64{
		"i8": {1, -1, -128}, "u8": {1, 255, 128}, "bool": {1, 0}, "i16": {-2}, "i32": {-2}, "i64": {math.MinInt64},
	} {
		v, err := f.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Int64s(v); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s = %v, %v, want %v", name, got, err, want)
		}
		if _, err := Float32s(v); !errors.Is(err, ErrDType) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s as floats: %v", name, err)
		}
	}
	if _, err := f.Tensor("absent"); !errors.Is(err, ErrMissingTensor) {
		t.Errorf("absent tensor: %v", err)
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}

func TestWriteIsDeterministicAndAligned(t *testing.T) {
	entries, metadata := sample()
	var a, b bytes.Buffer
	if err := Encode(&a, entries, metadata); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(entries)
	if err := Encode(&b, entries, metadata); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the order of the entries changes the bytes")
	}
	if n := binary.LittleEndian.Uint64(a.Bytes()) + 8; n%64 != 0 {
		t.Errorf("data starts at %d", n)
	}
	f, err := Parse("memory", a.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var again []Entry
	for _, name := range f.Names() {
		v, err := f.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Data) > 0 {
			// The views' capacities are cut, so the offset is found by address.
			off := uintptr(unsafe.Pointer(&v.Data[0])) - uintptr(unsafe.Pointer(&a.Bytes()[0]))
			if off%uintptr(v.DType.Size()) != 0 {
				t.Errorf("%s starts at byte %d, not a multiple of %d", name, off, v.DType.Size())
			}
		}
		again = append(again, Copy(v))
	}
	b.Reset()
	if err := Encode(&b, again, f.Metadata()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("reading and writing again changes the bytes")
	}
}

func TestWriteRefuses(t *testing.T) {
	one := func(name string, shape ...int) Entry { return Float32Entry(name, F32, shape, []float32{1}) }
	for _, c := range []struct {
		name     string
		entries  []Entry
		metadata map[string]string
	}{
		{"duplicate", []Entry{one("a", 1), one("a", 1)}, nil},
		{"reserved name", []Entry{one("__metadata__", 1)}, nil},
		{"name not UTF-8", []Entry{one("\xff", 1)}, nil},
		{"metadata not UTF-8", nil, map[string]string{"a": "\xff"}},
		{"too few bytes", []Entry{one("a", 2)}, nil},
		{"negative size", []Entry{one("a", -1)}, nil},
		{"overflow", []Entry{one("a", math.MaxInt, 2)}, nil},
		{"f32 values as integers", []Entry{Float32Entry("a", I32, []int{1}, []float32{1})}, nil},
		{"writer fails", []Entry{{"a", U8, []int{1}, func(io.Writer) error { return io.ErrClosedPipe }}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "old.safetensors")
			if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := Write(path, c.entries, c.metadata); err == nil || !strings.HasPrefix(err.Error(), path) {
				t.Errorf("got %v, want an error naming the file", err)
			}
			if old, err := os.ReadFile(path); err != nil || string(old) != "old" {
				t.Errorf("the old file is %q, %v", old, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("files left behind: %v, %v", left, err)
			}
		})
	}
	if err := Write(filepath.Join(t.TempDir(), "absent", "x"), nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder absent: %v", err)
	}
}

// TestHalf compares the conversion of all 65536 halves with their definition, and the rounding to bf16 with exact arithmetic.
func TestHalf(t *testing.T) {
	for h := range 1 << 16 {
		exp, frac := h>>10&31, float64(h&0x3ff)
		want := math.Ldexp(1+frac/1024, exp-15)
		switch {
		case exp == 0:
			want = math.Ldexp(frac, -24)
		case exp == 31 && frac == 0:
			want = math.Inf(1)
		case exp == 31:
			want = math.NaN()
		}
		if h>>15 == 1 {
			want = -want
		}
		got := float64(halfToFloat(uint16(h)))
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != (h>>15 == 1) {
			t.Fatalf("half %#04x is %v, want %v", h, got, want)
		}
	}
	for b := range 1 << 16 {
		f := math.Float32frombits(uint32(b) << 16)
		if got := toBF16(f); int(got) != b && f == f || f != f && got&0x7f == 0 {
			t.Fatalf("bf16 %#04x comes back as %#04x", b, got)
		}
	}
	for _, c := range []struct {
		f    float32
		want uint16
	}{{math.MaxFloat32, 0x7f80}, {1.00390625, 0x3f80}, {1.003906369, 0x3f81}, {1.01171875, 0x3f82}, {-1.01171875, 0xbf82}} {
		if got := toBF16(c.f); got != c.want {
			t.Errorf("toBF16(%v) = %#04x, want %#04x", c.f, got, c.want)
		}
	}
	if got := toBF16(math.Float32frombits(0x7f800001)); got&0x7fff <= 0x7f80 {
		t.Errorf("a NaN with low bits only becomes %#04x", got)
	}
}

// FuzzParse looks for files that panic, or that are accepted and then do not come back from a copy.
func FuzzParse(f *testing.F) {
	for _, c := range broken {
		f.Add(c.file)
	}
	entries, metadata := sample()
	var good bytes.Buffer
	if err := Encode(&good, entries, metadata); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("fuzz", data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrDType) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		var entries []Entry
		for _, name := range file.Names() {
			v, err := file.Tensor(name)
			if err != nil || v.Len()*v.DType.Size() != len(v.Data) {
				t.Fatalf("%q: %v, %d bytes", name, err, len(v.Data))
			}
			entries = append(entries, Copy(v))
		}
		var again bytes.Buffer
		if err := Encode(&again, entries, file.Metadata()); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("again", again.Bytes()); err != nil {
			t.Fatal(err)
		}
	})
}
