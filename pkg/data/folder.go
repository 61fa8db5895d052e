package data

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrUnreadable is wrapped by the complaint about a folder with too many files that are no readable images.
var ErrUnreadable = errors.New("too many unreadable images")

// MaxUnreadable is the share of a folder's images that may be unreadable.
const MaxUnreadable = 0.1

var imageExtensions = []string{".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}

// PackFolder opens the images in a folder and below it, or one image file, as a pack, which is written into cache once for each state of the folder. Files that cannot
// be decoded are left out and given to skipped, with the reason; more than MaxUnreadable of them are an error, and so is a folder without images.
func PackFolder(path, cache string, skipped func(err error)) (*Pack, error) {
	files, err := imageFiles(path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no images (%v) in this folder", path, imageExtensions)
	}
	state := sha256.New()
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(state, name, info.Size(), info.ModTime().UnixNano())
	}
	packed := filepath.Join(cache, fmt.Sprintf("images-%x.fxp", state.Sum(nil)[:6]))
	if p, err := OpenPack(packed); err == nil {
		return p, nil
	}
	unreadable := 0
	err = WritePack(packed, len(files), func(i int) (Photo, error) {
		m, err := Load(files[i])
		if err == nil {
			return NewPhoto(filepath.Base(files[i]), m), nil
		}
		unreadable++
		skipped(err)
		if float64(unreadable) > MaxUnreadable*float64(len(files)) {
			return Photo{}, fmt.Errorf("%w: %d of the first %d of %d in %s", ErrUnreadable, unreadable, i+1, len(files), path)
		}
		return Photo{}, nil
	})
	if err != nil {
		return nil, err
	}
	return OpenPack(packed)
}

// imageFiles lists the images of a folder by their extension, sorted.
func imageFiles(path string) ([]string, error) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return []string{path}, err
	}
	var files []string
	err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && slices.Contains(imageExtensions, strings.ToLower(filepath.Ext(name))) {
			files = append(files, name)
		}
		return err
	})
	return files, err
}
