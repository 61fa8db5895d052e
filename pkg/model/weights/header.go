package weights

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"
)

// metadataKey is the header's one key that is not a tensor.
const metadataKey = "__metadata__"

// entry is one tensor of the header; begin and end are byte offsets into the data.
type entry struct {
	name       string
	dtype      DType
	shape      []int
	begin, end int
}

// parseHeader reads the JSON header strictly: no duplicate keys, no unknown fields, whole non-negative numbers,
// and for every tensor end - begin equal to the bytes of its shape.
func parseHeader(path string, header []byte) ([]entry, map[string]string, error) {
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, fail(path, "", ErrCorrupt, "header does not begin with '{'")
	}
	if !utf8.Valid(header) { // encoding/json would put U+FFFD silently
		return nil, nil, fail(path, "", ErrCorrupt, "header is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(header))
	dec.UseNumber()
	tok := tokens{dec}
	var entries []entry
	metadata := map[string]string{}
	at := "" // the tensor being read
	err := tok.object(func(key string) error {
		at = key
		if key == metadataKey {
			return tok.object(func(k string) error {
				v, err := tok.string()
				metadata[k] = v
				return err
			})
		}
		e, err := tok.entry(key)
		if err != nil {
			return err
		}
		entries = append(entries, e)
		at = ""
		return nil
	})
	if err == nil {
		if _, tail := dec.Token(); tail != io.EOF {
			err = errors.New("something follows the JSON object")
		}
	}
	if errors.Is(err, ErrDType) {
		return nil, nil, fmt.Errorf("%s: tensor %q: %w", path, at, err)
	}
	if err != nil {
		return nil, nil, fail(path, at, ErrCorrupt, "header: %v", err)
	}
	return entries, metadata, nil
}

// tokens reads JSON one token at a time: encoding/json's Unmarshal keeps the last of duplicate keys without a word.
type tokens struct{ dec *json.Decoder }

// object reads an object and calls field after each key; field must read exactly the value.
func (t tokens) object(field func(key string) error) error {
	if err := t.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for t.dec.More() {
		key, err := t.string()
		if err != nil {
			return err
		}
		if seen[key] {
			return fmt.Errorf("duplicate key %q", key)
		}
		seen[key] = true
		if err := field(key); err != nil {
			return err
		}
	}
	return t.delim('}')
}

// entry reads {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, fields in any order.
func (t tokens) entry(name string) (entry, error) {
	e := entry{name: name}
	var dtype string
	var offsets []int
	err := t.object(func(key string) (err error) {
		switch key {
		case "dtype":
			dtype, err = t.string()
		case "shape":
			e.shape, err = t.ints()
		case "data_offsets":
			offsets, err = t.ints()
		default:
			err = fmt.Errorf("unknown field %q", key)
		}
		return err
	})
	if err != nil {
		return e, err
	}
	if dtype == "" || e.shape == nil || len(offsets) != 2 || offsets[0] > offsets[1] {
		return e, errors.New("wants dtype, shape and data_offsets [begin, end] with begin <= end")
	}
	e.begin, e.end = offsets[0], offsets[1]
	var ok bool
	if e.dtype, ok = dtypeOf(dtype); !ok {
		return e, fmt.Errorf("%w %q, can read F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL", ErrDType, dtype)
	}
	size, ok := byteSize(e.dtype, e.shape)
	if !ok {
		return e, fmt.Errorf("shape %v overflows", e.shape)
	}
	if size != e.end-e.begin {
		return e, fmt.Errorf("data_offsets [%d, %d] hold %d bytes, %v%v has %d", e.begin, e.end, e.end-e.begin, e.dtype, e.shape, size)
	}
	return e, nil
}

func (t tokens) delim(want json.Delim) error {
	tok, err := t.next()
	if err == nil && tok != want {
		err = fmt.Errorf("wants %v, got %v", want, tok)
	}
	return err
}

func (t tokens) string() (string, error) {
	tok, err := t.next()
	if err != nil {
		return "", err
	}
	s, ok := tok.(string)
	if !ok {
		return "", fmt.Errorf("wants a string, got %v", tok)
	}
	return s, nil
}

// ints reads an array of whole numbers, none negative; the result is never nil.
func (t tokens) ints() ([]int, error) {
	if err := t.delim('['); err != nil {
		return nil, err
	}
	list := []int{}
	for t.dec.More() {
		tok, err := t.next()
		if err != nil {
			return nil, err
		}
		number, ok := tok.(json.Number)
		if !ok {
			return nil, fmt.Errorf("wants a number, got %v", tok)
		}
		n, err := strconv.ParseInt(number.String(), 10, strconv.IntSize)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("wants a whole number >= 0, got %s", number)
		}
		list = append(list, int(n))
	}
	return list, t.delim(']')
}

func (t tokens) next() (json.Token, error) {
	tok, err := t.dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return tok, err
}

// byteSize returns the bytes of a tensor; ok is false if they do not fit an int.
func byteSize(d DType, shape []int) (size int, ok bool) {
	size = d.Size()
	for _, n := range shape {
		if n != 0 && size > math.MaxInt/n {
			return 0, false
		}
		size *= n
	}
	return size, true
}
