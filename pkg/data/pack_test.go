package data

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func writeTestPack(t *testing.T) (string, []Photo) {
	t.Helper()
	photos := testPhotos()
	path := filepath.Join(t.TempDir(), "set.fxp")
	if err := WritePack(path, len(photos), func(i int) (Photo, error) { return photos[i], nil }); err != nil {
		t.Fatal(err)
	}
	return path, photos
}

func TestPackRoundTrip(t *testing.T) {
	path, want := writeTestPack(t)
	p, err := OpenPack(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Photos) != len(want) {
		t.Fatalf("%d photographs, want %d", len(p.Photos), len(want))
	}
	for i, g := range p.Photos {
		if g.Name != want[i].Name || g.W != want[i].W || g.H != want[i].H || !bytes.Equal(g.Pix, want[i].Pix) {
			t.Errorf("photograph %d differs", i)
		}
	}
	if mp := Megapixels(p.Photos); mp != Megapixels(want) || mp < 0.09 {
		t.Errorf("%g megapixels", mp)
	}
	if again := NewPhoto("p1", p.Photos[0].Image()); !bytes.Equal(again.Pix, want[0].Pix) {
		t.Error("Image and NewPhoto are not inverse")
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPackDamaged(t *testing.T) {
	path, _ := writeTestPack(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(whole)) }
	for name, b := range map[string][]byte{
		"empty":        {},
		"short":        whole[:10],
		"magic":        edit(func(b []byte) []byte { b[0] = 'X'; return b }),
		"truncated":    whole[:len(whole)-5],
		"index offset": edit(func(b []byte) []byte { binary.LittleEndian.PutUint64(b[8:], 1<<60); return b }),
		"size":         bytes.Replace(whole, []byte(`"w":333`), []byte(`"w":999`), 1),
		"negative":     bytes.Replace(whole, []byte(`"w":333`), []byte(`"w":-33`), 1),
		"offset":       bytes.Replace(whole, []byte(`"offset":16`), []byte(`"offset":10`), 1),
	} {
		bad := filepath.Join(t.TempDir(), "bad.fxp")
		if err := os.WriteFile(bad, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if p, err := OpenPack(bad); err == nil {
			p.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := OpenPack(filepath.Join(t.TempDir(), "none.fxp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// TestWritePackFailure checks that a failed write leaves the old file and nothing else.
func TestWritePackFailure(t *testing.T) {
	path, photos := writeTestPack(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err = WritePack(path, 2, func(i int) (Photo, error) {
		if i == 1 {
			return Photo{}, broken
		}
		return photos[0], nil
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Error("the old pack was touched")
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%d files left, want 1", len(left))
	}
}
