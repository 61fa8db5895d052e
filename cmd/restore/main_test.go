package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fluxir/fluxir/internal/testmodel"
	"github.com/fluxir/fluxir/pkg/data"
)

// asCommand makes this test binary behave as the command.
const asCommand = "FLUXIR_TEST_RESTORE"

var identityModel string

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run(os.Args[1:]))
	}
	dir, err := os.MkdirTemp("", "fluxir-restore")
	if err == nil {
		identityModel = filepath.Join(dir, "identity")
		err = testmodel.Write(identityModel, 0)
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	return cmd
}

// restoreCmd runs the command on the CPU with the model that returns its input.
func restoreCmd(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := program(append([]string{"--device", "cpu", "--model", identityModel}, args...)...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func encoded(t *testing.T, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pictures are images of every kind that a PNG can hold.
func pictures() map[string]image.Image {
	r := image.Rect(0, 0, 17, 31)
	all := map[string]image.Image{
		"one": image.NewNRGBA(image.Rect(0, 0, 1, 1)), "rgb": image.NewRGBA(r), "alpha": image.NewNRGBA(r), "grey": image.NewGray(r),
		"grey16": image.NewGray16(r), "rgb16": image.NewRGBA64(r), "alpha16": image.NewNRGBA64(r),
		"palette": image.NewPaletted(r, color.Palette{color.NRGBA{255, 0, 0, 255}, color.NRGBA{0, 255, 9, 255}, color.NRGBA{1, 2, 3, 40}}),
	}
	for name, img := range all {
		set := img.(interface{ Set(x, y int, c color.Color) })
		for y := range img.Bounds().Dy() {
			for x := range img.Bounds().Dx() {
				a := uint16(65535)
				if strings.HasPrefix(name, "alpha") {
					a = uint16(257 * (255 - 7*y))
				}
				set.Set(x, y, color.NRGBA64{uint16(257 * 12 * x), uint16(257 * 8 * y), uint16(301 * (x + y)), a})
			}
		}
	}
	return all
}

// A model that returns its input gives back every pixel of every kind of image, in its depth.
func TestPictures(t *testing.T) {
	dir := t.TempDir()
	for name, img := range pictures() {
		in, out := write(t, filepath.Join(dir, name+".png"), encoded(t, img)), filepath.Join(dir, name+"_out.png")
		if code, _, stderr := restoreCmd(t, in, "-o", out); code != 0 {
			t.Errorf("%s: exit %d: %s", name, code, stderr)
			continue
		}
		want, err1 := data.Load(in)
		got, err2 := data.Load(out)
		if err := errors.Join(err1, err2); err != nil {
			t.Error(name, err)
			continue
		}
		if got.Meta.BitDepth != want.Meta.BitDepth || got.Meta.Gray != want.Meta.Gray || got.W != want.W || got.H != want.H {
			t.Errorf("%s: %dx%d %+v, was %dx%d %+v", name, got.W, got.H, got.Meta, want.W, want.H, want.Meta)
		}
		for i := range want.Pix {
			if d := got.Pix[i] - want.Pix[i]; d > 2e-5 || d < -2e-5 { // a step of 16 bits is 1.5e-5
				t.Errorf("%s: sample %d is %v, was %v", name, i, got.Pix[i], want.Pix[i])
				break
			}
		}
		if fmt.Sprint(got.Alpha) != fmt.Sprint(want.Alpha) {
			t.Errorf("%s: alpha changed", name)
		}
	}
}

func TestFormats(t *testing.T) {
	dir := t.TempDir()
	in := write(t, filepath.Join(dir, "in.png"), encoded(t, pictures()["rgb"]))
	for _, ext := range []string{"jpg", "webp", "tif", "png"} {
		out := filepath.Join(dir, "out."+ext)
		if code, stdout, stderr := restoreCmd(t, in, "-o", out, "--scale", "2", "--quality", "90"); code != 0 || stdout+stderr != "" {
			t.Errorf("%s: exit %d, wrote %q", ext, code, stdout+stderr)
		}
		if m, err := data.Load(out); err != nil || m.W != 34 || m.H != 62 {
			t.Errorf("%s: %v", ext, err)
		}
	}
}

// Every failure is one line on stderr that names its cause, a code of its kind, and no file.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	good := encoded(t, pictures()["rgb"])
	jpg := filepath.Join(dir, "good.jpg")
	img, err := data.Decode(bytes.NewReader(good))
	if err == nil {
		err = data.Save(jpg, img, data.SaveOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	jpeg, err := os.ReadFile(jpg)
	if err != nil {
		t.Fatal(err)
	}
	in := write(t, path("in.png"), good)
	file := write(t, path("file"), nil)
	if err := os.CopyFS(path("cut"), os.DirFS(identityModel)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(path("cut"), "adapter.safetensors"), 5000); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(path("config"), os.DirFS(identityModel)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path("config"), "vae", "config.json"), []byte(`{"latent_channels": 99999}`))

	for name, c := range map[string]struct {
		code int
		word string // in the message
		args []string
	}{
		"no input":        {2, "no input", nil},
		"no output":       {2, "no output", []string{in}},
		"unknown flag":    {2, "--wrong", []string{in, "-o", path("o.png"), "--wrong"}},
		"bad scale":       {2, "scale", []string{in, "-o", path("o.png"), "--scale", "3"}},
		"zero steps":      {2, "steps", []string{in, "-o", path("o.png"), "--steps", "0"}},
		"bad quality":     {2, "quality", []string{in, "-o", path("o.png"), "--quality", "101"}},
		"missing":         {3, "none.png: no such file", []string{path("none.png"), "-o", path("o.png")}},
		"empty":           {3, "empty file", []string{write(t, path("empty.png"), nil), "-o", path("o.png")}},
		"text":            {3, "not an image", []string{write(t, path("text.jpg"), []byte("hello, I am no photograph at all")), "-o", path("o.png")}},
		"truncated PNG":   {3, "truncated PNG", []string{write(t, path("short.png"), good[:len(good)*2/3]), "-o", path("o.png")}},
		"truncated JPEG":  {3, "truncated JPEG", []string{write(t, path("short.jpg"), jpeg[:len(jpeg)*2/3]), "-o", path("o.png")}},
		"folder of none":  {3, "no images", []string{t.TempDir(), "-o", path("results")}},
		"header bomb":     {4, "65535x65535", []string{write(t, path("bomb.jpg"), bombJPEG(jpeg)), "-o", path("o.png")}},
		"GIF":             {4, "GIF", []string{write(t, path("a.gif"), []byte("GIF89a..................")), "-o", path("o.png")}},
		"too large":       {4, "megapixels", []string{in, "-o", path("o.png"), "--scale", "4", "--max-megapixels", "0.001"}},
		"extension":       {4, "bmp", []string{in, "-o", path("o.bmp")}},
		"no folder":       {5, "o.png", []string{in, "-o", path("none/o.png")}},
		"under a file":    {5, "o.png", []string{in, "-o", filepath.Join(file, "o.png")}},
		"onto itself":     {5, "is the input", []string{in, "-o", in}},
		"no model":        {6, "nothing", []string{in, "-o", path("o.png"), "--model", path("nothing")}},
		"truncated model": {6, "adapter.safetensors", []string{in, "-o", path("o.png"), "--model", path("cut")}},
		"wrong config":    {6, "config.json", []string{in, "-o", path("o.png"), "--model", path("config")}},
		"no device":       {7, "cuda", []string{in, "-o", path("o.png"), "--device", "cuda:77"}},
	} {
		code, stdout, stderr := restoreCmd(t, c.args...)
		lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
		if c.code == 2 && len(lines) == 2 {
			lines = lines[:1] // the second says where the flags are explained
		}
		if code != c.code || len(lines) != 1 || !strings.Contains(stderr, c.word) || strings.Contains(stderr, "goroutine") || stdout != "" {
			t.Errorf("%s: exit %d, want %d and %q; wrote %q %q", name, code, c.code, c.word, stdout, stderr)
		}
	}
	for _, left := range []string{"o.png", "o.bmp"} {
		if _, err := os.Stat(path(left)); err == nil {
			t.Errorf("%s was written", left)
		}
	}
	if hidden, _ := filepath.Glob(path(".fluxir*")); len(hidden) > 0 {
		t.Errorf("left %v", hidden)
	}
}

// bombJPEG is a JPEG whose header says 65535 by 65535 pixels.
func bombJPEG(jpeg []byte) []byte {
	b := bytes.Clone(jpeg)
	frame := bytes.Index(b, []byte{0xff, 0xc0})
	copy(b[frame+5:], []byte{0xff, 0xff, 0xff, 0xff})
	return b
}

// One bad file does not stop a batch, and the code says that there was one. What exists can be skipped.
func TestBatch(t *testing.T) {
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "deep", "results")
	good := encoded(t, pictures()["rgb"])
	if err := os.Mkdir(filepath.Join(in, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(in, "a.png"), good)
	write(t, filepath.Join(in, "b.png"), good[:100])
	write(t, filepath.Join(in, "sub", "c.png"), good)
	write(t, filepath.Join(in, "notes.txt"), []byte("no image"))
	code, stdout, stderr := restoreCmd(t, in, "-o", out, "--json")
	if code != exitSome || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "b.png") {
		t.Errorf("exit %d, wrote %q", code, stderr)
	}
	events := map[string]int{}
	for line := range strings.Lines(stdout) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		events[v["event"].(string)]++
		if v["event"] == "result" && (v["width"] != 17. || v["height"] != 31. || v["process_peak_bytes"].(float64) < 1e6) {
			t.Errorf("result %v", v)
		}
		if v["event"] == "error" && v["code"] != float64(exitInput) {
			t.Errorf("error %v", v)
		}
	}
	if events["result"] != 2 || events["error"] != 1 || events["summary"] != 1 || events["progress"] == 0 {
		t.Errorf("events %v", events)
	}
	for _, name := range []string{"a.png", filepath.Join("sub", "c.png")} {
		if _, err := data.Load(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	write(t, filepath.Join(in, "b.png"), good)
	code, stdout, _ = restoreCmd(t, in, "-o", out, "--json", "--skip-existing")
	if code != 0 || strings.Count(stdout, `"event":"skipped"`) != 2 {
		t.Errorf("skipping: exit %d, wrote %q", code, stdout)
	}
	if code, _, stderr := restoreCmd(t, filepath.Join(in, "a.png"), filepath.Join(in, "sub", "..", "a.png"), "-o", out); code != exitUsage {
		t.Errorf("two inputs for one output: exit %d, %s", code, stderr)
	}
}

// An interrupted run ends within a second and leaves nothing behind: between two batches of tiles, and in the middle of an op that lasts longer.
func TestInterrupt(t *testing.T) {
	in := filepath.Join(t.TempDir(), "in.png")
	if err := data.Save(in, data.New(800, 800), data.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"many tiles": {"--steps", "1000"}, "one large tile": {"--steps", "1000", "--tile", "4096"}} {
		out := filepath.Join(t.TempDir(), "out.png")
		cmd := program(append([]string{"--device", "cpu", "--model", identityModel, in, "-o", out}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		begun := time.Now()
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		took := time.Since(begun)
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || took > time.Second || stderr.String() != "restore: interrupted\n" {
			t.Errorf("%s: exit %d after %v: %q", name, code, took, stderr.String())
		}
		t.Logf("%s: ended after %v", name, took)
		if left, _ := os.ReadDir(filepath.Dir(out)); len(left) != 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, flag := range []string{"--help", "-h", "--version"} {
		if code, stdout, stderr := restoreCmd(t, flag); code != 0 || stdout == "" || stderr != "" {
			t.Errorf("%s: exit %d, wrote %q", flag, code, stderr)
		}
	}
}
