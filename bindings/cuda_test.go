package bindings

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// again runs one test of this program in a process of its own with more environment: a plugin is loaded once per process.
func again(t *testing.T, test string, env ...string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.count=1")
	child.Env = append(os.Environ(), env...)
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v: %v\n%s", env, err, out)
	}
}

// TestPluginErrors: a plugin that is not there, is none or is of another ABI version leaves one line that says so.
func TestPluginErrors(t *testing.T) {
	if want := os.Getenv("FLUXIR_TEST_WANT"); want != "" {
		_, err := OpenDevice("cuda", 0)
		var e *Error
		if !errors.As(err, &e) || e.Status != StatusUnavailable || !strings.Contains(e.Message, want) || strings.Contains(e.Message, "\n") {
			t.Errorf("got %v, want StatusUnavailable and %q in one line", err, want)
		}
		return
	}
	dir := t.TempDir()
	for file, want := range map[string]string{
		filepath.Join(dir, "none.so"):          "none.so",
		library(t, dir, "other", "int other;"): "no plugin of fluxir",
		library(t, dir, "old", "static const unsigned table[64] = {77}; const void *fx_backend_table(void) { return table; }"): "speaks ABI version 77",
	} {
		again(t, "TestPluginErrors", "FLUXIR_CUDA="+file, "FLUXIR_TEST_WANT="+want)
	}
}

// TestDrivers: what stands between the plugin and a card is told in one line: no driver, one that is too old, no card, a card that is too old. A
// library loaded before the runtime plays the driver.
func TestDrivers(t *testing.T) {
	if want := os.Getenv("FLUXIR_TEST_WANT"); want != "" {
		_, err := OpenDevice("cuda", 0)
		var e *Error
		if !errors.As(err, &e) || e.Status != StatusUnavailable || !strings.Contains(e.Message, want) || strings.Contains(e.Message, "\n") {
			t.Errorf("got %v, want StatusUnavailable and %q in one line", err, want)
		}
		return
	}
	if os.Getenv("FLUXIR_DEVICE") != "cuda" {
		t.Skip("FLUXIR_DEVICE is not cuda")
	}
	dir := t.TempDir()
	for i, c := range []struct{ source, want string }{
		{"int cudaGetDeviceCount(int *n) { return *n = 0, 35; } int cudaDriverGetVersion(int *v) { return *v = 0; }", "no NVIDIA driver"},
		{"int cudaGetDeviceCount(int *n) { return *n = 0, 35; } int cudaDriverGetVersion(int *v) { return *v = 12040, 0; }", "the driver supports CUDA 12.4, this build needs 13."},
		{"int cudaGetDeviceCount(int *n) { return *n = 0, 100; } int cudaDriverGetVersion(int *v) { return *v = 13000, 0; }", "no CUDA-capable device"},
		{"int cudaGetDeviceCount(int *n) { return *n = 0, 0; }", "there are 0 CUDA devices"},
	} {
		again(t, "TestDrivers", "LD_PRELOAD="+library(t, dir, fmt.Sprint("driver", i), c.source), "FLUXIR_TEST_WANT="+c.want)
	}
	if os.Getenv("SOFTCUDA_REPORT") == "" {
		return // a real card is as old as it is
	}
	again(t, "TestDrivers", "SOFTCUDA_CC=7.5", "FLUXIR_TEST_WANT=has compute capability 7.5, want 8.0 or newer")
}

// library compiles a shared library of one source file.
func library(t *testing.T, dir, name, source string) string {
	t.Helper()
	file, library := filepath.Join(dir, name+".c"), filepath.Join(dir, name+".so")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", library, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return library
}

// TestToolchain: without nvcc and without a way to install it, `make cuda` says so in one line.
func TestToolchain(t *testing.T) {
	tools := t.TempDir() // what the script needs, and no more
	for _, name := range []string{"sh", "dirname", "readlink"} {
		path, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(tools, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ env, want string }{
		{"CUDA_CACHE=" + t.TempDir(), "no nvcc in CUDA_HOME or PATH, and no python3 to install NVIDIA's wheels with\n"},
		{"CUDA_HOME=" + tools, "CUDA_HOME=" + tools + ": no bin/nvcc or no include/cublasLt.h there\n"},
	} {
		cmd := exec.Command("sh", "../tools/cuda_toolchain.sh")
		cmd.Env = []string{"PATH=" + tools, "HOME=" + tools, c.env}
		if out, err := cmd.CombinedOutput(); err == nil || string(out) != c.want {
			t.Errorf("%s: %v, %q; want %q", c.env, err, out, c.want)
		}
	}
}

// TestDeviceNames: names of devices that cannot be.
func TestDeviceNames(t *testing.T) {
	for _, name := range []string{"cud", "cudas", "cuda:x", "cuda:", "cuda:999"} {
		if _, err := OpenDevice(name, 0); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOutOfMemory: a buffer or a workspace that does not fit leaves a message, and the device works on.
func TestOutOfMemory(t *testing.T) {
	if os.Getenv("FLUXIR_DEVICE") != "cuda" {
		t.Skip("FLUXIR_DEVICE is not cuda")
	}
	if os.Getenv("FLUXIR_TEST_WANT") == "" {
		again(t, "TestOutOfMemory", "FLUXIR_TEST_WANT=1", "SOFTCUDA_MEM_MB=256")
		return
	}
	d, err := OpenDevice("cuda", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Do(func() error { return exhaust(d) }); err != nil {
		t.Error(err)
	}
}

// exhaust takes all memory but a little, fails to run a product, frees it and runs the product.
func exhaust(d *Device) error {
	var e *Error
	x, err := d.NewBuffer(4 * 64 * 64)
	if err != nil {
		return err
	}
	defer x.Free()
	v := NewTensor(x.Data(), F32, 64, 64)
	if err := d.Fill(&v, 0.5); err != nil {
		return err
	}
	y, err := d.NewBuffer(4 * 64 * 64)
	if err != nil {
		return err
	}
	defer y.Free()
	out := NewTensor(y.Data(), F32, 64, 64)
	product := func() error { return d.LinearForward(&out, nil, &v, nil, nil, &v, nil, ActNone) }
	var taken []*Buffer
	free := func() {
		for _, b := range taken {
			b.Free()
		}
		taken = nil
	}
	defer free()
	for bytes := int64(64 << 30); bytes >= 1<<20; {
		b, err := d.NewBuffer(bytes)
		if err == nil {
			taken = append(taken, b)
			continue
		}
		if !errors.As(err, &e) || e.Status != StatusOutOfMemory || !strings.Contains(e.Message, "device memory") {
			return fmt.Errorf("buffer of %d bytes: %v", bytes, err)
		}
		bytes /= 2
	}
	if err := product(); !errors.As(err, &e) || e.Status != StatusOutOfMemory || !strings.Contains(e.Message, "linear_forward") {
		return fmt.Errorf("product without memory: %v", err)
	}
	free()
	if err := product(); err != nil {
		return err
	}
	got := make([]float32, 64*64)
	if err := CopyToHost(d, got, y.Data()); err != nil {
		return err
	}
	if got[17] != 16 {
		return fmt.Errorf("after running out of memory: got %v, want 16", got[17])
	}
	return d.Sync()
}
