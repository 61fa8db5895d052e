package train

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/model"
)

// Latents is a cache of what the frozen autoencoder's encoder makes of crops: a folder with one file for each crop and encoder.
//
//	DIR/ENCODER/KK/KEY.lat
//
// KEY is the SHA-256 of size and pixels of the crop, which says what it was cut from and where; KK are its first two digits. ENCODER is the start of the SHA-256
// of the encoder: weights, configuration, dtype, and the device, instruction set and libraries that decide the last bits. A file holds
//
//	bytes 0..7   magic "FXLATEN1"
//	32 bytes     key; 32 bytes: the encoder's hash
//	4 × uint32   shape: 1, h, w, 2c, little endian as all numbers
//	f32          moments (mean, logvar)
//	32 bytes     SHA-256 of all before
//
// and is checked in full when it is read: one that is not what was written is removed and made again. Files appear whole, so several runs may share a folder.
type Latents struct {
	Read, Made int64 // crops that were there, and that were encoded
	Damaged    int64 // of the latter, those whose file was not what had been written
	Bytes      int64 // of this encoder's files
	Err        error // of the first file that could not be written: nothing was added after it

	dir     string
	encoder [sha256.Size]byte
	most    int64 // bytes, 0: no limit
	buffer  []byte
}

const (
	latentMagic  = "FXLATEN1"
	latentHeader = len(latentMagic) + 2*sha256.Size + 16
)

var errDamaged = errors.New("damaged latent")

// OpenLatents opens or makes the cache in a folder for an encoder. Beyond most bytes (0: no limit) nothing is added. Called inside Device.Do.
func OpenLatents(dir string, most int64, vae *model.VAE, d *bindings.Device) (*Latents, error) {
	c := &Latents{most: most}
	var err error
	if c.encoder, err = encoderHash(vae, d); err != nil {
		return nil, err
	}
	c.dir = filepath.Join(dir, fmt.Sprintf("%x", c.encoder[:8]))
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	return c, eachLatent(c.dir, func(_ string, info fs.FileInfo) error { c.Bytes += info.Size(); return nil })
}

// encoderHash is that of all that decides the bits of a latent but for the crop.
func encoderHash(vae *model.VAE, d *bindings.Device) (sum [sha256.Size]byte, err error) {
	info, err := d.Info()
	if err != nil {
		return sum, err
	}
	config, err := json.Marshal(vae.Config)
	if err != nil {
		return sum, err
	}
	kind, _, _ := strings.Cut(info.Device, ":")
	name := "" // on the CPU the instruction set decides, not the processor's name
	if kind != "cpu" {
		name = info.Name
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%v\n%s\n%s\n%s\n", latentMagic, config, vae.DType, len(vae.Params.List), kind, name, info.ISA+" "+info.Libraries)
	for _, p := range vae.Params.List {
		fmt.Fprintln(h, p.Name, p.Value.Shape())
		values, err := p.Value.Host()
		if err != nil {
			return sum, err
		}
		hashFloats(h, values)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// moments is what make, which encodes, gives for a crop [h,w,3]: read where it is there, else made and stored. A nil cache makes.
func (c *Latents) moments(pixels []float32, height, width int, shape []int, make func() ([]float32, error)) ([]float32, error) {
	if c == nil {
		return make()
	}
	key := c.key(pixels, height, width)
	path := filepath.Join(c.dir, fmt.Sprintf("%x", key[:1]), fmt.Sprintf("%x.lat", key))
	values, err := c.read(path, key, shape)
	if err == nil {
		c.Read++
		return values, nil
	}
	if errors.Is(err, errDamaged) {
		c.Damaged++
		if info, err := os.Stat(path); err == nil {
			c.Bytes -= info.Size()
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if values, err = make(); err != nil {
		return nil, err
	}
	c.Made++
	c.write(path, key, shape, values)
	return values, nil
}

// key is the hash of a crop.
func (c *Latents) key(pixels []float32, height, width int) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintln(h, height, width)
	hashFloats(h, pixels)
	return [sha256.Size]byte(h.Sum(nil))
}

// header is the first bytes of a file.
func (c *Latents) header(key [sha256.Size]byte, shape []int) []byte {
	b := append([]byte(latentMagic), key[:]...)
	b = append(b, c.encoder[:]...)
	for _, n := range shape {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}

// read checks a whole file.
func (c *Latents) read(path string, key [sha256.Size]byte, shape []int) ([]float32, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := 1
	for _, d := range shape {
		n *= d
	}
	size := latentHeader + 4*n + sha256.Size
	if cap(c.buffer) < size+1 {
		c.buffer = make([]byte, size+1) // a longer file is damaged
	}
	got, err := io.ReadFull(f, c.buffer[:size+1])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	b := c.buffer[:got]
	if got != size || !bytes.Equal(b[:latentHeader], c.header(key, shape)) || sha256.Sum256(b[:size-sha256.Size]) != [sha256.Size]byte(b[size-sha256.Size:]) {
		return nil, errDamaged
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[latentHeader+4*i:]))
	}
	return values, nil
}

// write stores a latent where the limit allows it. A full disk does not stop the run.
func (c *Latents) write(path string, key [sha256.Size]byte, shape []int, values []float32) {
	b := c.header(key, shape)
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	sum := sha256.Sum256(b)
	b = append(b, sum[:]...)
	if c.Err != nil || (c.most > 0 && c.Bytes+int64(len(b)) > c.most) {
		return
	}
	if c.Err = os.MkdirAll(filepath.Dir(path), 0o755); c.Err == nil {
		c.Err = data.WriteFile(path, b)
	}
	if c.Err == nil {
		c.Bytes += int64(len(b))
	}
}

// String says how the cache was used.
func (c *Latents) String() string {
	text := fmt.Sprintf("%d read, %d encoded, %d of them for damaged files, %.1f MB", c.Read, c.Made, c.Damaged, float64(c.Bytes)/1e6)
	if c.most > 0 {
		text += fmt.Sprintf(" of %.1f", float64(c.most)/1e6)
	}
	if c.Err != nil {
		text += fmt.Sprintf("; nothing is added any more: %v", c.Err)
	}
	return text
}

// eachLatent calls f for every file of a cache, or of one encoder in it.
func eachLatent(dir string, f func(path string, info fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".lat" {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another process has removed it
		}
		if err != nil {
			return err
		}
		return f(path, info)
	})
}

// LatentFolder is one encoder's part of a cache.
type LatentFolder struct {
	Encoder string // start of its hash
	Files   int
	Bytes   int64
	Damaged int
}

// CheckLatents reads every file of a cache. With clean it removes all of them, and what killed processes were just writing.
func CheckLatents(dir string, clean bool) (list []LatentFolder, err error) {
	folders, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range folders {
		path := filepath.Join(dir, entry.Name())
		if marks, _ := filepath.Glob(filepath.Join(path, "??", "*.lat")); !entry.IsDir() || len(marks) == 0 {
			continue // not of a cache
		}
		l := LatentFolder{Encoder: entry.Name()}
		err := eachLatent(path, func(path string, info fs.FileInfo) error {
			l.Files, l.Bytes = l.Files+1, l.Bytes+info.Size()
			b, err := os.ReadFile(path)
			if end := len(b) - sha256.Size; end < latentHeader || sha256.Sum256(b[:end]) != [sha256.Size]byte(b[end:]) {
				l.Damaged++
			}
			return err
		})
		if err == nil && clean {
			err = removeLatents(path)
		}
		if err != nil {
			return list, err
		}
		list = append(list, l)
	}
	return list, nil
}

// removeLatents removes an encoder's files and the folders that are empty then.
func removeLatents(dir string) error {
	var files, folders []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			folders = append(folders, path)
		case filepath.Ext(path) == ".lat" || filepath.Ext(path) == ".tmp":
			files = append(files, path)
		}
		return nil
	})
	for _, path := range files {
		err = errors.Join(err, os.Remove(path))
	}
	slices.Reverse(folders)
	for _, path := range folders {
		_ = os.Remove(path) // one that has something else in it stays
	}
	return err
}
