package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/restore"
)

// file is one input and where its result goes.
type file struct{ in, out string }

// check makes sure, cheaply, that the input is there and that the output can be written.
func (f file) check() error {
	if err := restore.CheckInput(f.in); err != nil {
		return err
	}
	return restore.CheckOutput(f.in, f.out)
}

// writeSheet sets input and result side by side; an input that was enlarged is shown enlarged by bicubic.
func (f file) writeSheet(path string) error {
	before, err := data.Load(f.in)
	if err != nil {
		return restore.Wrap(restore.ErrInput, err)
	}
	after, err := data.Load(f.out)
	if err != nil {
		return err
	}
	if before.W != after.W || before.H != after.H {
		before = data.Resize(before, after.W, after.H, data.Bicubic)
	}
	return restore.Wrap(restore.ErrOutput, data.Save(path, data.Sheet(before, after), data.SaveOptions{}))
}

// files lists inputs and outputs. With several inputs, or a folder, the output is a folder, made here, in which every file keeps
// its name and, from a folder, its subfolder.
func (c *command) files() ([]file, error) {
	folder := isFolder(c.output) || strings.HasSuffix(c.output, string(filepath.Separator))
	many := len(c.inputs) > 1
	for _, in := range c.inputs {
		many = many || isFolder(in)
	}
	if !many && !folder {
		return []file{{c.inputs[0], c.output}}, nil
	}
	if err := makeFolder(c.output); err != nil {
		return nil, err
	}
	var files []file
	from := map[string]string{}
	for _, in := range c.inputs {
		names, err := imagesIn(in, c.output)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			f := file{filepath.Join(in, name), filepath.Join(c.output, name)}
			if name == "" {
				f = file{in, filepath.Join(c.output, filepath.Base(in))}
			}
			if other, ok := from[f.out]; ok {
				return nil, restore.Wrap(restore.ErrOption, fmt.Errorf("%s and %s would both be written to %s", other, f.in, f.out))
			}
			from[f.out] = f.in
			if err := makeFolder(filepath.Dir(f.out)); err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

// imagesIn lists the image files of a folder and its subfolders, by extension, as paths below it in lexical order; of a file the
// empty path. Hidden entries and what lies below output are left out.
func imagesIn(in, output string) ([]string, error) {
	if !isFolder(in) {
		return []string{""}, nil
	}
	results, err := os.Stat(output)
	if err != nil {
		return nil, err
	}
	var names []string
	err = filepath.WalkDir(in, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return restore.Wrap(restore.ErrInput, err)
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && path != in
		if entry.IsDir() {
			info, err := entry.Info()
			if hidden || (err == nil && path != in && os.SameFile(info, results)) {
				return fs.SkipDir
			}
			return nil
		}
		if _, err := data.FormatOf(path); err == nil && !hidden {
			name, err := filepath.Rel(in, path)
			names = append(names, name)
			return err
		}
		return nil
	})
	if err == nil && len(names) == 0 {
		err = restore.Wrap(restore.ErrInput, fmt.Errorf("%s: no images in this folder (.png, .jpg, .webp, .tif)", in))
	}
	return names, err
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func makeFolder(path string) error {
	if err := os.MkdirAll(path, 0o777); err != nil {
		return restore.Wrap(restore.ErrOutput, err)
	}
	return nil
}
