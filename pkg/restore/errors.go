package restore

import (
	"errors"
	"fmt"

	"github.com/fluxir/fluxir/bindings"
)

// Kinds of failure, to be tested with errors.Is. Those of images are data's: ErrNotImage, ErrTruncated, ErrCorrupt, ErrTooLarge,
// ErrUnsupported.
var (
	ErrOption = errors.New("bad option")
	ErrInput  = errors.New("input unreadable")
	ErrOutput = errors.New("output not writable")
	ErrModel  = errors.New("model missing or corrupt")
	ErrDevice = errors.New("device failed")
)

// kindError is an error of a kind; the kind's own text is not repeated in the message.
type kindError struct{ kind, err error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }

// Wrap makes err an error of the kind, with err's message; nil stays nil.
func Wrap(kind, err error) error {
	if err == nil {
		return nil
	}
	return &kindError{kind, err}
}

func errorf(kind error, format string, args ...any) error {
	return &kindError{kind, fmt.Errorf(format, args...)}
}

// deviceKind marks an error of the C core as ErrDevice.
func deviceKind(err error) error {
	var e *bindings.Error
	if errors.As(err, &e) {
		return Wrap(ErrDevice, err)
	}
	return err
}
