package bindings

/*
#cgo noescape fx_upload_start
#cgo nocallback fx_upload_start
#cgo noescape fx_upload_wait
#cgo nocallback fx_upload_wait
#include "fluxir.h"
*/
import "C"

import "unsafe"

// HostBuffer is host memory that a card reads by itself: what an Upload copies from. It is C memory, unknown to the garbage collector.
type HostBuffer struct {
	device *Device
	data   unsafe.Pointer
	bytes  int64
}

// NewHostBuffer allocates bytes > 0, contents undefined. Call inside Do.
func (d *Device) NewHostBuffer(bytes int64) (*HostBuffer, error) {
	b := &HostBuffer{device: d, bytes: bytes}
	return b, d.check(C.fx_host_create(d.ctx, &b.data, C.int64_t(bytes)))
}

// Bytes is the memory itself, until Free.
func (b *HostBuffer) Bytes() []byte { return unsafe.Slice((*byte)(b.data), b.bytes) }

// Free releases the memory, from which no upload may be under way. Idempotent. Call inside Do.
func (b *HostBuffer) Free() {
	if b.data != nil {
		C.fx_host_destroy(b.device.ctx, b.data, C.int64_t(b.bytes))
		b.data = nil
	}
}

// Upload is a copy to the device that runs beside ops, made as often as wanted; see fx_upload in fluxir.h. Call its methods inside Do.
type Upload struct {
	device *Device
	c      *C.fx_upload
}

// NewUpload returns an upload that has not started.
func (d *Device) NewUpload() (*Upload, error) {
	u := &Upload{device: d}
	return u, d.check(C.fx_upload_create(d.ctx, &u.c))
}

// Start copies all of host to the device address when the ops called so far are over. Ops called before Wait must leave that memory alone.
func (u *Upload) Start(device unsafe.Pointer, host *HostBuffer) error {
	return u.device.check(C.fx_upload_start(u.c, device, host.data, C.int64_t(host.bytes)))
}

// Wait makes the ops called after it wait for the copy.
func (u *Upload) Wait() error { return u.device.check(C.fx_upload_wait(u.c)) }

// Free ends an upload whose copy is over. Idempotent.
func (u *Upload) Free() {
	C.fx_upload_destroy(u.c)
	u.c = nil
}
