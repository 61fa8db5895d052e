package data

import (
	"errors"
	"fmt"
	"image/jpeg"
	"image/png"
	"io"
	"io/fs"

	"golang.org/x/image/tiff"
)

// Kinds of failure of Load, Decode and Save, to be tested with errors.Is. The message of a returned error says which file and why.
var (
	ErrNotImage    = errors.New("not an image")
	ErrTruncated   = errors.New("truncated image")
	ErrCorrupt     = errors.New("corrupt image")
	ErrTooLarge    = errors.New("image too large")
	ErrUnsupported = errors.New("unsupported image")
)

// imageError is a message of a kind; the kind's own text is not repeated in it.
type imageError struct {
	kind error
	msg  string
}

func (e *imageError) Error() string { return e.msg }
func (e *imageError) Unwrap() error { return e.kind }

func errorOf(kind error, format string, args ...any) error {
	return &imageError{kind, fmt.Sprintf(format, args...)}
}

// codecError turns an error of a codec into one of this package's kinds; starved says that the codec met the end of the file.
func codecError(f Format, err error, starved bool) error {
	var (
		jpegUnsupported jpeg.UnsupportedError
		pngUnsupported  png.UnsupportedError
		tiffUnsupported tiff.UnsupportedError
	)
	switch {
	case starved, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errorOf(ErrTruncated, "truncated %s", f)
	case errors.As(err, &jpegUnsupported):
		return errorOf(ErrUnsupported, "unsupported JPEG: %s", string(jpegUnsupported))
	case errors.As(err, &pngUnsupported):
		return errorOf(ErrUnsupported, "unsupported PNG: %s", string(pngUnsupported))
	case errors.As(err, &tiffUnsupported):
		return errorOf(ErrUnsupported, "unsupported TIFF: %s", string(tiffUnsupported))
	}
	return errorOf(ErrCorrupt, "corrupt %s: %v", f, err)
}

// fileError puts the path in front of err, once.
func fileError(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}
