package bindings

/*
#include <stdlib.h>
#include "fluxir.h"
*/
import "C"

import "unsafe"

// Comm is this process's place in the group that mpirun started. All processes make the same calls in the same order; see fluxir.h, processes.
type Comm struct {
	Rank, Size           int // this process, 0 first; all of them
	LocalRank, LocalSize int // on this machine
	Machines             int
	Threads              int // cores for this process

	c *C.fx_comm
}

const commMessage = 512

// commError makes an error of a status and the message in m, which it frees.
func commError(status C.fx_status, m *C.char) error {
	defer C.free(unsafe.Pointer(m))
	if status == C.FX_STATUS_OK {
		return nil
	}
	return &Error{Status: Status(status), Message: C.GoString(m)}
}

// OpenComm joins the group; the engine, libfluxir_mpi.so, is loaded by it. Once in a program.
func OpenComm() (*Comm, error) {
	c := &Comm{}
	var info C.fx_comm_info
	m := (*C.char)(C.malloc(commMessage))
	if err := commError(C.fx_comm_create(&c.c, &info, m, commMessage), m); err != nil {
		return nil, err
	}
	c.Rank, c.Size, c.Machines, c.Threads = int(info.rank), int(info.size), int(info.machines), int(info.threads)
	c.LocalRank, c.LocalSize = int(info.local_rank), int(info.local_size)
	return c, nil
}

// Close leaves the group; it waits for the others to do the same.
func (c *Comm) Close() {
	C.fx_comm_destroy(c.c)
	c.c = nil
}

// AllReduceStart begins to replace F32 tensors of d by their sums over all processes. They must not be touched until Wait. Call inside d's Do.
func (c *Comm) AllReduceStart(d *Device, tensors []Tensor) error {
	if len(tensors) == 0 {
		return nil
	}
	return d.check(C.fx_comm_allreduce_start(c.c, d.ctx, tensors[0].c(), C.int64_t(len(tensors))))
}

// Wait waits for all sums that were started. Call inside d's Do.
func (c *Comm) Wait(d *Device) error { return d.check(C.fx_comm_wait(c.c, d.ctx)) }

// Broadcast overwrites b by process 0's. All have the same length. Where process 0 passes, what it did before is done.
func (c *Comm) Broadcast(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	memory := C.CBytes(b)
	defer C.free(memory)
	m := (*C.char)(C.malloc(commMessage))
	err := commError(C.fx_comm_broadcast(c.c, memory, C.int64_t(len(b)), m, commMessage), m)
	copy(b, unsafe.Slice((*byte)(memory), len(b)))
	return err
}

// Abort ends the programs of all processes and does not return.
func (c *Comm) Abort(code int) { C.fx_comm_abort(c.c, C.int32_t(code)) }
