package bindings

// #include "fluxir.h"
import "C"

// Status is an fx_status other than OK.
type Status int32

// The statuses of fluxir.h.
const (
	StatusInvalid     Status = C.FX_STATUS_INVALID       // an argument: shape, dtype, stride, range
	StatusOutOfMemory Status = C.FX_STATUS_OUT_OF_MEMORY // host or device
	StatusUnsupported Status = C.FX_STATUS_UNSUPPORTED   // the backend lacks the op for these arguments
	StatusUnavailable Status = C.FX_STATUS_UNAVAILABLE   // no such device
	StatusDevice      Status = C.FX_STATUS_DEVICE        // a fault of the device or of a library below
	StatusInternal    Status = C.FX_STATUS_INTERNAL      // a bug in fluxir
)

// Error is a failed call of the C ABI: its status and the context's message.
type Error struct {
	Status  Status
	Message string
}

func (e *Error) Error() string { return e.Message }

// check turns a status into an error, nil on OK: the one place where statuses are read.
func (d *Device) check(status C.fx_status) error {
	if status == C.FX_STATUS_OK {
		return nil
	}
	return &Error{Status: Status(status), Message: C.GoString(C.fx_ctx_message(d.ctx))}
}
