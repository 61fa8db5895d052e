package weights

import (
	"errors"
	"fmt"
)

// The kinds of failure. Every error of this package wraps one of them (or the error of the operating system), so that a
// command can turn them into distinct exit codes with errors.Is.
var (
	ErrCorrupt       = errors.New("corrupt")           // the bytes contradict the format, or an index its shards
	ErrTruncated     = errors.New("truncated")         // the file ends before what its header promises
	ErrMissingTensor = errors.New("missing tensor")    // a tensor that the model needs is not there
	ErrShape         = errors.New("wrong shape")       // a tensor does not have the shape that the configuration asks for
	ErrDType         = errors.New("unsupported dtype") // a tensor of a type that cannot be read or converted
	ErrConfig        = errors.New("bad configuration") // a config.json that describes no model of ours
)

// fail is the one shape of this package's errors: "FILE: tensor "NAME": KIND: cause", without the tensor where tensor is "".
func fail(path, tensor string, kind error, format string, args ...any) error {
	cause := fmt.Sprintf(format, args...)
	if tensor == "" {
		return fmt.Errorf("%s: %w: %s", path, kind, cause)
	}
	return fmt.Errorf("%s: tensor %q: %w: %s", path, tensor, kind, cause)
}
