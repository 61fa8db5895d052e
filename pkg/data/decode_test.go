package data

import (
	"bytes"
	"compress/zlib"
	"errors"
	"image"
	"image/png"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// goldenPNG reads the 8-bit picture that Pillow made with Go's own decoder, so that Load is not its own witness.
func goldenPNG(t *testing.T, path string) *image.NRGBA {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	out := image.NewNRGBA(src.Bounds())
	for y := range out.Rect.Dy() {
		for x := range out.Rect.Dx() {
			out.Set(x, y, src.At(x, y))
		}
	}
	return out
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLoadAgainstPillow compares every file of testdata with what Pillow reads from it.
func TestLoadAgainstPillow(t *testing.T) {
	wants, err := filepath.Glob("testdata/*.want.png")
	if err != nil || len(wants) < 35 {
		t.Fatalf("found %d references (%v)", len(wants), err)
	}
	for _, w := range wants {
		path := strings.TrimSuffix(w, ".want.png")
		t.Run(filepath.Base(path), func(t *testing.T) {
			want := goldenPNG(t, w)
			got, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			if got.W != want.Rect.Dx() || got.H != want.Rect.Dy() {
				t.Fatalf("got %dx%d, want %v", got.W, got.H, want.Rect.Size())
			}
			// Two inverse DCTs may each round the other way, and the colour matrix adds up the three channels' steps.
			levels := 0.0
			if filepath.Ext(path) == ".jpg" {
				levels = 2
			}
			sixteen := strings.HasPrefix(filepath.Base(path), "grey16")
			for i := range got.W * got.H {
				p := want.Pix[4*i : 4*i+4]
				for c := range 3 {
					v := float64(got.Pix[3*i+c]) * 255
					if sixteen { // stored as min(257*high+5, 65535); want has the high bytes
						v = math.Floor(float64(got.Pix[3*i+c]) * 65535 / 256)
					}
					if math.Abs(v-float64(p[c])) > levels+1e-4 {
						t.Fatalf("pixel %d channel %d: got %.4f, want %d", i, c, v, p[c])
					}
				}
				a := float32(1)
				if got.Alpha != nil {
					a = got.Alpha[i]
				}
				if math.Abs(float64(a)*255-float64(p[3])) > 1e-4 {
					t.Fatalf("pixel %d: alpha %v, want %d", i, a*255, p[3])
				}
			}
		})
	}
}

func TestLoadMeta(t *testing.T) {
	icc := mustRead(t, "testdata/srgb.icc")
	tests := []struct {
		file   string
		format Format
		depth  int
		gray   bool
		alpha  bool
		icc    bool
		dpi    float64
	}{
		{"rgb420.jpg", FormatJPEG, 8, false, false, false, 0},
		{"grey.jpg", FormatJPEG, 8, true, false, false, 0},
		{"cmyk.jpg", FormatJPEG, 8, false, false, false, 0},
		{"grey1.png", FormatPNG, 8, true, false, false, 0},
		{"grey_alpha.png", FormatPNG, 8, true, true, false, 0},
		{"grey16.png", FormatPNG, 16, true, false, false, 0},
		{"grey16.tif", FormatTIFF, 16, true, false, false, 0},
		{"palette.png", FormatPNG, 8, false, false, false, 0},
		{"palette_trns.png", FormatPNG, 8, false, true, false, 0},
		{"colour_key.png", FormatPNG, 8, false, true, false, 0},
		{"lossy_alpha.webp", FormatWebP, 8, false, true, false, 0},
		{"profile.jpg", FormatJPEG, 8, false, false, true, 300},
		{"profile.png", FormatPNG, 8, false, false, true, 300},
		{"profile.tif", FormatTIFF, 8, false, false, true, 300},
		{"profile.webp", FormatWebP, 8, false, false, true, 0},
	}
	for _, tc := range tests {
		m, err := Load("testdata/" + tc.file)
		if err != nil {
			t.Error(err)
			continue
		}
		if m.Meta.Format != tc.format || m.Meta.BitDepth != tc.depth || m.Meta.Gray != tc.gray || (m.Alpha != nil) != tc.alpha {
			t.Errorf("%s: got %s, %d bit, grey %v, alpha %v", tc.file, m.Meta.Format, m.Meta.BitDepth, m.Meta.Gray, m.Alpha != nil)
		}
		if want := map[bool][]byte{true: icc}[tc.icc]; !bytes.Equal(m.Meta.ICC, want) {
			t.Errorf("%s: profile of %d bytes, want %d", tc.file, len(m.Meta.ICC), len(want))
		}
		if math.Abs(m.Meta.DPI-tc.dpi) > 0.02 { // PNG stores whole dots per metre
			t.Errorf("%s: %v dpi, want %v", tc.file, m.Meta.DPI, tc.dpi)
		}
	}
}

func TestOrientationIsReset(t *testing.T) {
	for _, file := range []string{"orient6.jpg", "orient6.png", "orient6.webp", "orient8.png"} {
		m, err := Load("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		d, ok := parseTIFF(m.Meta.EXIF)
		if !ok {
			t.Fatalf("%s: EXIF is lost", file)
		}
		if o := d.short(tagOrientation); o != 1 {
			t.Errorf("%s: kept EXIF asks for orientation %d", file, o)
		}
	}
	if m, err := Load("testdata/orient6.png"); err != nil || !bytes.Contains(m.Meta.EXIF, []byte("fluxir")) {
		t.Errorf("the other EXIF tags are lost (%v)", err)
	}
}

func TestUprightEXIF(t *testing.T) {
	// big-endian, one entry (orientation 7), a link to a thumbnail directory at 0x26
	const exif = "MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x07\x00\x00\x00\x00\x00\x26"
	const upright = "MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"
	tests := []struct {
		in   string
		o    int
		want string
	}{
		{exif, 7, upright},
		{"Exif\x00\x00" + exif, 7, upright},
		{strings.Replace(exif, "\x07", "\x09", 1), 1, strings.Replace(upright, "\x00\x01\x00\x00\x00\x00\x00\x00", "\x00\x09\x00\x00\x00\x00\x00\x00", 1)},
		{exif[:len(exif)-1], 1, ""},
		{"", 1, ""},
		{"MM\x00*\xff\xff\xff\xff", 1, ""},
		{"MM\x00*\x00\x00\x00\x08\xff\xff", 1, ""},
		{"text", 1, ""},
	}
	for _, tc := range tests {
		if o, got := uprightEXIF([]byte(tc.in)); o != tc.o || string(got) != tc.want {
			t.Errorf("%q: got %d %q, want %d %q", tc.in, o, got, tc.o, tc.want)
		}
	}
}

func TestInflateLimit(t *testing.T) {
	deflated := func(n int) []byte {
		var b bytes.Buffer
		z := zlib.NewWriter(&b)
		if _, err := z.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		z.Close()
		return b.Bytes()
	}
	if got := inflate(deflated(maxProfileBytes)); len(got) != maxProfileBytes {
		t.Errorf("the largest profile came back as %d bytes", len(got))
	}
	for name, z := range map[string][]byte{"too long": deflated(maxProfileBytes + 1), "cut": deflated(500)[:8], "text": []byte("text"), "empty": nil} {
		if got := inflate(z); got != nil {
			t.Errorf("%s: got %d bytes", name, len(got))
		}
	}
}

// TestResolutionUnits: JFIF and TIFF may count dots per centimetre.
func TestResolutionUnits(t *testing.T) {
	jfif := mustRead(t, "testdata/profile.jpg")
	at := bytes.Index(jfif, []byte("JFIF\x00")) + 7
	dir := mustRead(t, "testdata/profile.tif")
	d, _ := parseTIFF(dir)
	unit := d.find(tagResolutionUnit)
	for u, want := range map[byte]float64{0: 0, 1: 300, 2: 762, 3: 0} {
		jfif[at] = u
		if m, err := Decode(bytes.NewReader(jfif)); err != nil || m.Meta.DPI != want {
			t.Errorf("JFIF unit %d: %v dpi, want %v (%v)", u, m.Meta.DPI, want, err)
		}
		unit[8] = u + 1 // none, inch, centimetre are 1, 2, 3
		if m, err := Decode(bytes.NewReader(dir)); err != nil || math.Abs(m.Meta.DPI-want) > 1e-9 {
			t.Errorf("TIFF unit %d: %v dpi, want %v (%v)", u+1, m.Meta.DPI, want, err)
		}
	}
}

func TestLoadByContent(t *testing.T) {
	b := mustRead(t, "testdata/rgb420.jpg")
	path := filepath.Join(t.TempDir(), "picture.png")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := Load(path); err != nil || m.Meta.Format != FormatJPEG {
		t.Errorf("a JPEG named .png: %v", err)
	}
}

func TestLoadBadFiles(t *testing.T) {
	read := func(name string) []byte { return mustRead(t, "testdata/"+name) }
	half := func(name string) []byte { b := read(name); return b[:len(b)/2] }
	flipped := func(name string, at int) []byte { b := read(name); b[at] ^= 0xff; return b }
	animated := read("lossy_alpha.webp")
	animated[20] |= 2
	arithmetic := bytes.Replace(read("rgb420.jpg"), []byte{0xff, 0xc0}, []byte{0xff, 0xc9}, 1)
	tests := []struct {
		name string
		b    []byte
		kind error
		want string
	}{
		{"empty.png", nil, ErrNotImage, "empty file"},
		{"text.jpg", []byte("This is not a picture.\n"), ErrNotImage, "not an image"},
		{"byte.png", []byte{0x89}, ErrNotImage, "not an image"},
		{"cut.jpg", half("rgb420.jpg"), ErrTruncated, "truncated JPEG"},
		{"start.jpg", read("rgb420.jpg")[:3], ErrTruncated, "truncated JPEG"},
		{"noend.jpg", read("rgb420.jpg")[:len(read("rgb420.jpg"))-2], ErrTruncated, "truncated JPEG"},
		{"cut.png", half("palette.png"), ErrTruncated, "truncated PNG"},
		{"cut.webp", half("lossy.webp"), ErrTruncated, "truncated WebP"},
		{"cut.tif", half("lzw.tif"), ErrTruncated, "truncated TIFF"},
		{"crc.png", flipped("one.png", 29), ErrCorrupt, "corrupt PNG"},
		{"vp8.webp", flipped("lossy.webp", 23), ErrCorrupt, "corrupt WebP"},
		{"bomb.jpg", read("bomb.jpg"), ErrTooLarge, "65535x65535"},
		{"bomb.png", read("bomb.png"), ErrTooLarge, "65535x65535"},
		{"bomb.tif", read("bomb.tif"), ErrTooLarge, "65535x65535"},
		{"bomb.webp", read("bomb.webp"), ErrTooLarge, "65535x65535"},
		{"gif.png", []byte("GIF89a\x01\x00\x01\x00\x00\x00\x00;"), ErrUnsupported, "GIF"},
		{"heic.jpg", []byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00"), ErrUnsupported, "HEIF"},
		{"big.tif", []byte("II+\x00\x08\x00\x00\x00"), ErrUnsupported, "BigTIFF"},
		{"anim.webp", animated, ErrUnsupported, "animation"},
		{"arithmetic.jpg", arithmetic, ErrUnsupported, "unsupported JPEG"},
	}
	dir := t.TempDir()
	for _, tc := range tests {
		path := filepath.Join(dir, tc.name)
		if err := os.WriteFile(path, tc.b, 0o600); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Load(path)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, tc.kind) || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
			t.Errorf("%s: allocated %d MiB before it was refused", tc.name, used>>20)
		}
	}
	if _, err := Load(filepath.Join(dir, "absent.png")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, err := Load(dir); err == nil || strings.Count(err.Error(), dir) != 1 {
		t.Errorf("a folder: %v", err)
	}
}

// TestTruncations cuts files at every length: an error of the right kind each time, never a picture.
func TestTruncations(t *testing.T) {
	for _, name := range []string{"rgb420.jpg", "progressive.jpg", "cmyk.jpg", "palette_trns.png", "grey16.png", "lossy_alpha.webp", "lossless.webp", "lzw.tif", "plain.tif"} {
		b := mustRead(t, "testdata/"+name)
		end := len(b)
		if filepath.Ext(name) == ".tif" {
			d, _ := parseTIFF(b)
			end = d.next // what follows the directory may be optional values
		}
		for n := range end {
			_, err := Decode(bytes.NewReader(b[:n]))
			kinds := []error{ErrTruncated, ErrNotImage}
			if n > sniffBytes {
				kinds = kinds[:1]
			}
			if !slices.ContainsFunc(kinds, func(k error) bool { return errors.Is(err, k) }) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
			}
		}
	}
}

func TestMaxPixels(t *testing.T) {
	for limit, ok := range map[int]bool{21 * 13: true, 21*13 - 1: false} {
		d := Decoder{MaxPixels: limit}
		if _, err := d.Load("testdata/rgb420.jpg"); (err == nil) != ok || err != nil && !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range files {
		if strings.HasSuffix(p, ".want.png") || strings.HasSuffix(p, ".icc") {
			continue
		}
		f.Add(mustRead(f, p))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decoder{MaxPixels: 1 << 16}.Decode(bytes.NewReader(b))
		if err != nil {
			for _, kind := range []error{ErrNotImage, ErrTruncated, ErrCorrupt, ErrTooLarge, ErrUnsupported} {
				if errors.Is(err, kind) {
					return
				}
			}
			t.Fatalf("error without a kind: %v", err)
		}
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
		for _, v := range append(m.Pix, m.Alpha...) {
			if v < 0 || v > 1 {
				t.Fatalf("sample %v outside 0..1", v)
			}
		}
		if err := Encode(&bytes.Buffer{}, m, SaveOptions{}); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}
