package bindings

/*
#cgo noescape fx_copy_to_device
#cgo nocallback fx_copy_to_device
#cgo noescape fx_copy_to_host
#cgo nocallback fx_copy_to_host
#include "fluxir.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// DType is the storage type of a tensor.
type DType int32

// The dtypes of fluxir.h.
const (
	F32  DType = C.FX_DTYPE_F32
	BF16 DType = C.FX_DTYPE_BF16
	F16  DType = C.FX_DTYPE_F16
)

// Size is the number of bytes of one element.
func (t DType) Size() int {
	if t == F32 {
		return 4
	}
	return 2
}

func (t DType) String() string {
	switch t {
	case F32:
		return "f32"
	case BF16:
		return "bf16"
	case F16:
		return "f16"
	}
	return fmt.Sprintf("dtype(%d)", int32(t))
}

// Buffer owns bytes on a device. Who creates it frees it; the garbage collector does not.
type Buffer struct {
	device *Device
	c      *C.fx_buffer
	data   unsafe.Pointer
	bytes  int64
}

// NewBuffer allocates bytes > 0 on the device, 64-byte aligned, contents undefined. Call inside Do.
func (d *Device) NewBuffer(bytes int64) (*Buffer, error) {
	b := &Buffer{device: d, bytes: bytes}
	if err := d.check(C.fx_buffer_create(d.ctx, &b.c, C.int64_t(bytes))); err != nil {
		return nil, err
	}
	b.data = C.fx_buffer_data(b.c)
	return b, nil
}

// Free releases the bytes; tensors that view them must not be used again. Idempotent. Call inside Do.
func (b *Buffer) Free() {
	if b.c != nil {
		C.fx_buffer_destroy(b.c)
		b.c, b.data = nil, nil
	}
}

// Bytes is the buffer's size.
func (b *Buffer) Bytes() int64 { return b.bytes }

// Data is the device address of the first byte.
func (b *Buffer) Data() unsafe.Pointer { return b.data }

// MaxRank is the largest number of dimensions of a tensor.
const MaxRank = C.FX_MAX_RANK

// Tensor is a view on device memory, as fx_tensor: plain data, no ownership. Strides are in elements. The zero Tensor (Data nil, Rank 0) stands for
// an absent argument.
type Tensor struct {
	Data    unsafe.Pointer
	DType   DType
	Rank    int32
	Shape   [MaxRank]int64
	Strides [MaxRank]int64
}

// NewTensor is a contiguous view of the given shape at data.
func NewTensor(data unsafe.Pointer, dtype DType, shape ...int) Tensor {
	if len(shape) < 1 || len(shape) > MaxRank {
		panic(fmt.Sprintf("bindings: rank %d", len(shape)))
	}
	t := Tensor{Data: data, DType: dtype, Rank: int32(len(shape))}
	stride := int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		t.Shape[i], t.Strides[i] = int64(shape[i]), stride
		stride *= int64(shape[i])
	}
	return t
}

// c is the C view of t, nil for the zero Tensor. Tensor and fx_tensor have the same layout (checked by a test).
func (t *Tensor) c() *C.fx_tensor {
	if t == nil || t.Rank == 0 {
		return nil
	}
	return (*C.fx_tensor)(unsafe.Pointer(t))
}

// CopyToDevice copies len(host) elements to the device address; the element type is the caller's concern. Call inside Do.
func CopyToDevice[E any](d *Device, device unsafe.Pointer, host []E) error {
	if len(host) == 0 {
		return nil
	}
	bytes := C.int64_t(len(host)) * C.int64_t(unsafe.Sizeof(host[0]))
	return d.check(C.fx_copy_to_device(d.ctx, device, unsafe.Pointer(&host[0]), bytes))
}

// CopyToHost copies len(host) elements from the device address. Call inside Do.
func CopyToHost[E any](d *Device, host []E, device unsafe.Pointer) error {
	if len(host) == 0 {
		return nil
	}
	bytes := C.int64_t(len(host)) * C.int64_t(unsafe.Sizeof(host[0]))
	return d.check(C.fx_copy_to_host(d.ctx, unsafe.Pointer(&host[0]), device, bytes))
}
