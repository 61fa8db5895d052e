//go:build !unix

package fluxgen

import (
	"errors"
	"os"
)

func lockFile(*os.File, bool) error { return errors.New("this system has no file locks") }
