package weights

import (
	"encoding/binary"
	"math"
)

// DType is the element type of a stored tensor. Elements are little-endian.
type DType uint8

// The element types that can be read. Float types convert with [Float32s] and [Float64s], the others with [Int64s].
const (
	F64 DType = iota + 1
	F32
	F16
	BF16
	I64
	I32
	I16
	I8
	U8
	Bool
)

var dtypes = [...]struct {
	name string
	size int
}{
	F64: {"F64", 8}, F32: {"F32", 4}, F16: {"F16", 2}, BF16: {"BF16", 2},
	I64: {"I64", 8}, I32: {"I32", 4}, I16: {"I16", 2}, I8: {"I8", 1}, U8: {"U8", 1}, Bool: {"BOOL", 1},
}

// String returns the name that the safetensors header uses, such as "BF16".
func (d DType) String() string {
	if d == 0 || int(d) >= len(dtypes) {
		return "invalid"
	}
	return dtypes[d].name
}

// Size returns the bytes of one element.
func (d DType) Size() int { return dtypes[d].size }

// dtypeOf finds a type by its name in the header; ok is false for names that are unknown or not supported (F8_E4M3, F4, U16, C64, …).
func dtypeOf(name string) (d DType, ok bool) {
	for d := F64; d <= Bool; d++ {
		if dtypes[d].name == name {
			return d, true
		}
	}
	return 0, false
}

// Float32s returns a copy of t's elements as f32. F64 is rounded to nearest even; F32, F16 and BF16 are exact.
// Any other type is ErrDType.
func Float32s(t Tensor) ([]float32, error) {
	out, src := make([]float32, t.Len()), t.Data
	switch t.DType {
	case F64:
		for i := range out {
			out[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	case F32:
		for i := range out {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case F16:
		for i := range out {
			out[i] = halfToFloat(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case BF16:
		for i := range out {
			out[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	default:
		return nil, fail(t.Path, t.Name, ErrDType, "%v is not a float type", t.DType)
	}
	return out, nil
}

// Float64s returns a copy of t's elements as f64, exact for every float type. Any other type is ErrDType.
func Float64s(t Tensor) ([]float64, error) {
	out := make([]float64, t.Len())
	if t.DType == F64 {
		for i := range out {
			out[i] = math.Float64frombits(binary.LittleEndian.Uint64(t.Data[8*i:]))
		}
		return out, nil
	}
	f, err := Float32s(t)
	if err != nil {
		return nil, err
	}
	for i, v := range f {
		out[i] = float64(v)
	}
	return out, nil
}

// Int64s returns a copy of t's elements, of any integer type or BOOL (0 or 1). A float type is ErrDType.
func Int64s(t Tensor) ([]int64, error) {
	out, src := make([]int64, t.Len()), t.Data
	switch t.DType {
	case I64:
		for i := range out {
			out[i] = int64(binary.LittleEndian.Uint64(src[8*i:]))
		}
	case I32:
		for i := range out {
			out[i] = int64(int32(binary.LittleEndian.Uint32(src[4*i:])))
		}
	case I16:
		for i := range out {
			out[i] = int64(int16(binary.LittleEndian.Uint16(src[2*i:])))
		}
	case I8:
		for i := range out {
			out[i] = int64(int8(src[i]))
		}
	case U8, Bool:
		for i := range out {
			out[i] = int64(src[i])
		}
	default:
		return nil, fail(t.Path, t.Name, ErrDType, "%v is not an integer type", t.DType)
	}
	return out, nil
}

// halfToFloat converts an IEEE binary16 to f32, exactly. The exponent and mantissa are put where f32 has them and the
// difference of the biases (127-15) is multiplied back, which handles subnormals without a branch; only infinities and NaN need one.
func halfToFloat(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	if h&0x7c00 == 0x7c00 {
		return math.Float32frombits(sign | 0x7f800000 | uint32(h&0x3ff)<<13)
	}
	f := math.Float32frombits(uint32(h&0x7fff)<<13) * 0x1p112
	return math.Float32frombits(sign | math.Float32bits(f))
}

// toBF16 rounds f to the nearest bfloat16, ties to even. NaN stays NaN.
func toBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if f != f {
		return uint16(u>>16) | 0x40 // quiet, so that cutting the low bits cannot leave an infinity
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}
