package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/fluxir/fluxir/pkg/data"
)

// Result says what became of a file.
type Result struct {
	Width, Height int           // of the output, pixels
	Elapsed       time.Duration // reading and writing included
	DeviceBytes   int64         // highest memory of the device since Open: weights, activations, workspace
	Streamed      bool          // see Restorer.Streamed
}

// File restores the image file in to the file out, whose extension chooses the format. That out can be written is made sure
// before the work; it is written in one step, so that it is the old file or the complete new one. Errors name the file they are
// about and are of the kinds ErrInput, ErrOutput, ErrDevice and data's.
func (r *Restorer) File(ctx context.Context, in, out string, save data.SaveOptions, progress Progress) (Result, error) {
	begun := time.Now()
	if err := CheckOutput(in, out); err != nil {
		return Result{}, err
	}
	format, err := data.FormatOf(out)
	if err != nil {
		return Result{}, err
	}
	save.Format = format
	img, err := data.Decoder{MaxPixels: r.options.maxPixels()}.Load(in)
	if err != nil {
		return Result{}, Wrap(ErrInput, err)
	}
	runtime.GC() // what the decoder used is as large as the image
	scale := r.settings.scale
	if err := format.CheckSize(img.W*scale, img.H*scale); err != nil {
		return Result{}, fmt.Errorf("%s: %w", out, err)
	}
	restored, err := r.Restore(ctx, img, progress)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", in, err)
	}
	var file bytes.Buffer
	if err := data.Encode(&file, restored, save); err != nil {
		return Result{}, fmt.Errorf("%s: %w", out, err)
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	if err := data.WriteFile(out, file.Bytes()); err != nil {
		return Result{}, Wrap(ErrOutput, err)
	}
	info, err := r.Info()
	return Result{Width: restored.W, Height: restored.H, Elapsed: time.Since(begun), DeviceBytes: info.Peak, Streamed: r.Streamed()}, err
}

// CheckInput returns an error of the kind ErrInput where there is no file in.
func CheckInput(in string) error {
	if info, err := os.Stat(in); err != nil {
		return errorf(ErrInput, "%s: %w", in, cause(err))
	} else if info.IsDir() {
		return errorf(ErrInput, "%s: is a folder", in)
	}
	return nil
}

// CheckOutput returns an error of the kind ErrOutput where out cannot be written: its folder is missing or forbids it, it is a
// folder or read-only, or it is the file in. An extension without a format is data.ErrUnsupported.
func CheckOutput(in, out string) error {
	if _, err := data.FormatOf(out); err != nil {
		return err
	}
	if info, err := os.Stat(out); err == nil {
		switch input, err := os.Stat(in); {
		case err == nil && os.SameFile(info, input):
			return errorf(ErrOutput, "%s: is the input; want another name for the result", out)
		case info.IsDir():
			return errorf(ErrOutput, "%s: is a folder", out)
		}
		f, err := os.OpenFile(out, os.O_WRONLY, 0)
		if err != nil {
			return Wrap(ErrOutput, err)
		}
		f.Close()
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".fluxir-*.tmp")
	if err != nil {
		return errorf(ErrOutput, "%s: cannot write into its folder: %w", out, cause(err))
	}
	f.Close()
	return Wrap(ErrOutput, os.Remove(f.Name()))
}

// cause is what the operating system said, without the path.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
