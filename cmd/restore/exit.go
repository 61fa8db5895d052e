package main

import (
	"context"
	"errors"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/restore"
)

// Exit codes, as --help lists them.
const (
	exitOK          = 0
	exitOther       = 1
	exitUsage       = 2
	exitInput       = 3
	exitUnsupported = 4
	exitOutput      = 5
	exitModel       = 6
	exitDevice      = 7
	exitSome        = 8
	exitInterrupted = 130
)

// exitCode is the code of an error. Size and format are asked before readability, of which they are cases.
func exitCode(err error) int {
	for _, k := range []struct {
		kind error
		code int
	}{
		{nil, exitOK}, {context.Canceled, exitInterrupted}, {restore.ErrOption, exitUsage}, {restore.ErrModel, exitModel}, {restore.ErrDevice, exitDevice},
		{restore.ErrOutput, exitOutput}, {data.ErrTooLarge, exitUnsupported}, {data.ErrUnsupported, exitUnsupported}, {restore.ErrInput, exitInput},
	} {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return exitOther
}
