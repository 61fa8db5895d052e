package model

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// HashBundle is the SHA-256 over the names and contents of a bundle's files, in the order of their paths: transformer, autoencoder and adapter, nothing else
// that lies in the folder. It reads them all.
func HashBundle(files fs.FS) (string, error) {
	sum := sha256.New()
	for _, part := range []string{adapterFile, transformerDir, vaeDir} {
		err := fs.WalkDir(files, part, func(name string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && part == adapterFile {
				return nil
			}
			if err != nil || entry.IsDir() {
				return err
			}
			f, err := files.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintf(sum, "%s\x00", name)
			_, err = io.Copy(sum, f)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
