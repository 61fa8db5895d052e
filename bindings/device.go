// Package bindings is the only cgo of fluxir: one Go function per C function of fluxir.h, no policy. Run `make build` once before `go build`: it makes the
// archive this package links.
package bindings

/*
#cgo CFLAGS: -I${SRCDIR}/../csrc
#cgo LDFLAGS: ${SRCDIR}/../build/release/libfluxir_cpu.a -ldnnl -lgomp -lstdc++ -lm -ldl
#cgo noescape fx_ctx_get_info
#cgo nocallback fx_ctx_get_info
#include <stdlib.h>
#include "fluxir.h"
*/
import "C"

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"
)

// Device is one device with one stream of work and one locked OS thread, on which every C call for it is made: libgomp and CUDA keep
// state per thread. Open it with OpenDevice, run work in Do, Close it at the end.
type Device struct {
	name string
	ctx  *C.fx_ctx
	work chan func()
	once sync.Once
}

// Info describes an open device.
type Info struct {
	Device    string // "cpu", "cuda:0"
	Name      string // processor or card
	ISA       string // tier in use
	Libraries string // versions of the libraries below
	Threads   int
	Allocated int64 // bytes in buffers and workspace now
	Peak      int64 // highest value of Allocated
	Free      int64 // bytes of a card's memory that can still be had; 0 on the CPU
}

// OpenDevice opens "cpu", "cuda" or "cuda:N" with the given number of CPU threads per op, 0 meaning all cores.
func OpenDevice(name string, threads int) (*Device, error) {
	d := &Device{name: name, work: make(chan func())}
	opened := make(chan error)
	go d.loop(name, threads, opened)
	if err := <-opened; err != nil {
		return nil, err
	}
	return d, nil
}

// loop owns the OS thread: it opens the context, runs work until Close, and destroys the context. The thread stays locked, so it ends
// with the goroutine instead of going back to Go's pool.
func (d *Device) loop(name string, threads int, opened chan<- error) {
	runtime.LockOSThread()
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	const capacity = 512
	message := (*C.char)(C.malloc(capacity))
	defer C.free(unsafe.Pointer(message))
	status := C.fx_ctx_create(&d.ctx, cname, C.int32_t(threads), message, capacity)
	if status != C.FX_STATUS_OK {
		opened <- &Error{Status: Status(status), Message: C.GoString(message)}
		return
	}
	opened <- nil
	for f := range d.work {
		f()
	}
	C.fx_ctx_destroy(d.ctx)
}

// Do runs f on the device's thread and returns its error. Ops are called inside f, directly; Do must not be called inside f. A panic in f comes
// out of Do with f's value.
func (d *Device) Do(f func() error) error {
	type outcome struct {
		err   error
		panic any
	}
	done := make(chan outcome, 1)
	d.work <- func() {
		var out outcome
		defer func() {
			if out.panic = recover(); out.panic != nil {
				out.panic = fmt.Sprintf("%v\n%s", out.panic, stack())
			}
			done <- out
		}()
		out.err = f()
	}
	out := <-done
	if out.panic != nil {
		panic(out.panic)
	}
	return out.err
}

// Close ends the device's thread. Buffers must have been freed. Close is idempotent.
func (d *Device) Close() { d.once.Do(func() { close(d.work) }) }

// Dry tells whether this is the device that computes nothing and counts memory.
func (d *Device) Dry() bool { return d.name == "dry" }

// Sync waits for all work of the device. Call inside Do.
func (d *Device) Sync() error { return d.check(C.fx_ctx_sync(d.ctx)) }

// Info reports what the device is and how much memory it uses. Call inside Do.
func (d *Device) Info() (Info, error) {
	var c C.fx_ctx_info
	if err := d.check(C.fx_ctx_get_info(d.ctx, &c)); err != nil {
		return Info{}, err
	}
	return Info{
		Device: C.GoString(&c.device[0]), Name: C.GoString(&c.name[0]), ISA: C.GoString(&c.isa[0]),
		Libraries: C.GoString(&c.libraries[0]), Threads: int(c.threads), Allocated: int64(c.allocated), Peak: int64(c.peak),
		Free: int64(c.free),
	}, nil
}

func stack() []byte {
	b := make([]byte, 8<<10)
	return b[:runtime.Stack(b, false)]
}
