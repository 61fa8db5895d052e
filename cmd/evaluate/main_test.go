package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fluxir/fluxir/pkg/data"
)

// TestMain is also the program, so that its exit codes are tested.
func TestMain(m *testing.M) {
	if os.Getenv("EVALUATE_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// evaluateCmd runs the program and returns its exit code and what it printed.
func evaluateCmd(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "EVALUATE_MAIN=1", "OMP_WAIT_POLICY=passive")
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// wave is a picture with detail; shift moves its values.
func wave(w, h int, shift float32) *data.Image {
	m := data.New(w, h)
	for i := range m.Pix {
		x, y := float64(i/3%w), float64(i/3/w)
		m.Pix[i] = float32(0.5+0.3*math.Sin(x*0.7)*math.Cos(y*0.4+float64(i%3))) + shift
	}
	return m
}

// save writes pictures into a new folder.
func save(t *testing.T, pictures map[string]*data.Image) string {
	t.Helper()
	dir := t.TempDir()
	for name, m := range pictures {
		if err := data.Save(filepath.Join(dir, name), m, data.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUsage(t *testing.T) {
	dir := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0)})
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"", exitUsage, "want photographs"},
		{"--nonsense", exitUsage, "unknown flag"},
		{"--crop -1 " + dir, exitUsage, "--crop -1"},
		{"score", exitUsage, "got 0 arguments"},
		{"score --channel x " + dir, exitUsage, `channel: got "x"`},
		{"score --lq-consistency 2 " + dir, exitUsage, "name the --input"},
		{"compare a.csv", exitUsage, "got 1 arguments"},
		{"nowhere", exitOther, "nowhere"},
		{"--presets rain " + dir, exitOther, `"rain"`},
		{"--model nowhere " + dir, exitOther, "nowhere: no such file"},
		{"score " + t.TempDir(), exitOther, "no pictures in"},
		{"score --metrics fsim " + dir, exitOther, `unknown metric "fsim"`},
		{"score --metrics musiq --weights " + dir + " " + dir, exitOther, "fetch pyiqa's musiq_koniq"},
		{"compare a.csv b.csv", exitOther, "a.csv: no such file"},
		{"--help", exitOK, "--lq-consistency"},
		{"score --help", exitOK, "--weights"},
	} {
		code, stdout, stderr := evaluateCmd(t, strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(stderr, c.want) || stdout != "" || code != exitOK && strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit %d, want %d with %q: %s%s", c.line, code, c.code, c.want, stdout, stderr)
		}
	}
}

// TestEvaluate measures the embedded model on one photograph, with --lq-consistency, and another program, `cp`, which restores nothing.
func TestEvaluate(t *testing.T) {
	dir, csv := save(t, map[string]*data.Image{"a.png": wave(48, 40, 0)}), filepath.Join(t.TempDir(), "a.csv")
	code, stdout, stderr := evaluateCmd(t, "--presets", "eval-noise", "--device", "cpu", "--threads", "1", "--lq-consistency", "--csv", csv, dir)
	text, err := os.ReadFile(csv)
	if code != exitOK || !strings.Contains(stdout, "| eval-noise | 1 |") || !strings.Contains(stdout, "lq-consistency, eval-noise: ") || err != nil ||
		!strings.HasPrefix(string(text), "image,preset,psnr_in") || strings.Count(string(text), "\n") != 2 {
		t.Errorf("exit %d, %v: %s%s\n%s", code, err, stdout, stderr, text)
	}
	code, stdout, stderr = evaluateCmd(t, "--presets", "eval-blur", "--with", "cp", dir)
	if code != exitOK || !strings.Contains(stdout, "(**+0.00 dB**)") {
		t.Errorf("cp: exit %d: %s%s", code, stdout, stderr)
	}
	code, _, stderr = evaluateCmd(t, "--presets", "eval-blur", "--with", "false", dir)
	if code != exitOther || !strings.Contains(stderr, "a.png: eval-blur: false: exit status 1") {
		t.Errorf("a program that fails: exit %d: %s", code, stderr)
	}
}

// TestScoreAndCompare: pictures are scored with protocols; other protocols and other pictures are not compared.
func TestScoreAndCompare(t *testing.T) {
	reference := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0), "b.png": wave(50, 40, 0)})
	input := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0.2), "b.png": wave(50, 40, 0.2)})
	better := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0.02), "b.png": wave(50, 40, 0.02)})
	worse := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0.1), "b.png": wave(50, 40, 0.1)})
	out := t.TempDir()
	csv := func(name, result string, more ...string) string {
		t.Helper()
		path := filepath.Join(out, name+".csv")
		args := append([]string{"score", result, "--reference", reference, "--input", input, "--metrics", "psnr,gmsd", "--lq-consistency", "2", "--csv", path,
			"--html", filepath.Join(out, name+".html")}, more...)
		if code, stdout, stderr := evaluateCmd(t, args...); code != exitOK || !strings.Contains(stdout, "lq-consistency psnr channel=rgb shrink=2 kernel=bicubic") {
			t.Fatalf("%s: exit %d: %s%s", name, code, stdout, stderr)
		}
		return path
	}
	a, b, c := csv("better", better), csv("worse", worse), csv("border", better, "--border", "4")
	if page, err := os.ReadFile(filepath.Join(out, "better.html")); err != nil || !strings.Contains(string(page), "before") || !strings.Contains(string(page), "reference") {
		t.Errorf("page: %v", err)
	}
	code, stdout, stderr := evaluateCmd(t, "compare", b, a)
	if code != exitOK || !strings.Contains(stdout, "| psnr | 2 |") || !strings.Contains(stdout, "| lq-consistency | 2 |") {
		t.Errorf("compare: exit %d: %s%s", code, stdout, stderr)
	}
	code, stdout, stderr = evaluateCmd(t, "compare", a, c)
	if code != exitOther || !strings.Contains(stderr, "protocols differ") || !strings.Contains(stderr, "border=4") || stdout != "" {
		t.Errorf("other protocols: exit %d: %s%s", code, stdout, stderr)
	}
	os.Remove(filepath.Join(worse, "b.png"))
	code, _, stderr = evaluateCmd(t, "compare", a, csv("one", worse))
	if code != exitOther || !strings.Contains(stderr, "b.png: only the first file has") {
		t.Errorf("other pictures: exit %d: %s", code, stderr)
	}
}

// TestScoreBadPictures: unreadable files, one pixel and mixed sizes are named and do not stop the others.
func TestScoreBadPictures(t *testing.T) {
	reference := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0), "b.png": wave(40, 30, 0), "c.png": wave(20, 15, 0), "d.png": wave(1, 1, 0)})
	result := save(t, map[string]*data.Image{"a.png": wave(40, 30, 0.1), "b.png": wave(40, 30, 0.1), "c.png": wave(40, 30, 0.1), "d.png": wave(1, 1, 0.1)})
	if err := os.WriteFile(filepath.Join(result, "b.png"), []byte("no picture"), 0o644); err != nil {
		t.Fatal(err)
	}
	csv := filepath.Join(t.TempDir(), "s.csv")
	code, stdout, stderr := evaluateCmd(t, "score", result, "--reference", reference, "--metrics", "psnr,ssim", "--csv", csv)
	text, _ := os.ReadFile(csv)
	for _, want := range []string{"b.png", "c.png: psnr: image of 40x30 pixels, reference of 20x15", "d.png: SSIM: image of 1x1 pixels is too small"} {
		if code != exitOther || !strings.Contains(stderr, want) {
			t.Errorf("exit %d, want %q: %s", code, want, stderr)
		}
	}
	if strings.Count(string(text), "\n") != 4 || !strings.Contains(stdout, "| psnr ↑ | result | 2 |") { // the header, both of a, psnr of d
		t.Errorf("the others' scores: %s%s", stdout, text)
	}
	if code, _, stderr := evaluateCmd(t, "score", filepath.Join(result, "c.png"), "--reference", filepath.Join(reference, "c.png"), "--metrics", "psnr", "--resize", "area"); code != exitOK {
		t.Errorf("resized: exit %d: %s", code, stderr)
	}
}

// TestFullDisk: scores that do not fit leave the file before them, and no other.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount a small tmpfs here: %v", err)
	}
	defer syscall.Unmount(disk, 0)
	csv, result := filepath.Join(disk, "s.csv"), save(t, map[string]*data.Image{"a.png": wave(40, 30, 0)})
	if err := os.WriteFile(csv, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "filler"), make([]byte, 1<<20), 0o644); err == nil {
		t.Fatal("the disk is not small")
	}
	code, _, stderr := evaluateCmd(t, "score", result, "--metrics", "brisque", "--csv", csv)
	text, _ := os.ReadFile(csv)
	if code != exitOther || !strings.Contains(stderr, "no space left") || !strings.Contains(stderr, csv) || string(text) != "before" {
		t.Errorf("exit %d, %q: %s", code, text, stderr)
	}
	files, _ := os.ReadDir(disk)
	if names := fmt.Sprint(files); len(files) != 2 {
		t.Errorf("left behind: %s", names)
	}
}
