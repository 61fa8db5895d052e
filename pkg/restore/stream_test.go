package restore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/internal/testmodel"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// streamCase restores a small picture with a model like FLUX.1 whose weights are most of what it takes, on the device of FLUXIR_DEVICE or the CPU.
func streamCase(t *testing.T, o Options) (pix []float32, peak int64, streamed bool) {
	t.Helper()
	o.Device, o.Tile, o.Steps, o.Memory = cmp.Or(os.Getenv("FLUXIR_DEVICE"), "cpu"), 32, 3, 1
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := r.Restore(context.Background(), gradient(40, 20), nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.Info()
	if err != nil {
		t.Fatal(err)
	}
	return out.Pix, info.Peak, r.Streamed()
}

// A model that exceeds the memory is streamed by itself, with the same bits, within what the plan says; one that exceeds it even so is refused in
// one line.
func TestStream(t *testing.T) {
	model := filepath.Join(t.TempDir(), "deep")
	if err := testmodel.WriteDeepFlux(model); err != nil {
		t.Fatal(err)
	}
	o := Options{Model: model, Tile: 32, Memory: 1}
	resident, err := o.takes(0)
	if err != nil {
		t.Fatal(err)
	}
	streamed, err := o.takes(tensor.StreamSlots)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("plan: %d MB resident, %d MB streamed", resident>>20, streamed>>20)
	if resident-streamed < 80<<20 {
		t.Errorf("streaming saves %d bytes of 107 MB in blocks", resident-streamed)
	}
	want, peak, is := streamCase(t, Options{Model: model, Stream: StreamOff})
	if is || peak > resident {
		t.Errorf("resident: streamed %v, takes %d bytes, planned %d", is, peak, resident)
	}
	for name, o := range map[string]Options{"on": {Stream: StreamOn}, "limit": {DeviceMemory: streamed}} {
		o.Model = model
		got, peak, is := streamCase(t, o)
		if !is || peak > streamed {
			t.Errorf("%s: streamed %v, takes %d bytes, planned %d", name, is, peak, streamed)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: other bits than with resident weights", name)
		}
	}
	o.Device, o.DeviceMemory = "cpu", streamed-1
	if _, err := Open(o); !errors.Is(err, ErrDevice) || !strings.Contains(fmt.Sprint(err), "even with its blocks streamed") || strings.Contains(err.Error(), "\n") {
		t.Errorf("too little memory: %v", err)
	}
	if os.Getenv("FLUXIR_DEVICE") == "cuda" && os.Getenv("SOFTCUDA_REPORT") != "" { // its memory can be set
		smallCard(t, model, streamed>>20+1, sum(want))
		smallCard(t, model, (streamed-unseen)>>20-24, "")
	}
}

// sum is a hash of a picture's bits.
func sum(pix []float32) string {
	h := sha256.New()
	binary.Write(h, binary.LittleEndian, pix)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// smallCard runs TestSmallCard on a software device with so much memory.
func smallCard(t *testing.T, model string, megabytes int64, want string) {
	child := exec.Command(os.Args[0], "-test.run=^TestSmallCard$", "-test.count=1", "-test.v")
	child.Env = append(os.Environ(), fmt.Sprintf("SOFTCUDA_MEM_MB=%d", megabytes), "FLUXIR_TEST_MODEL="+model, "FLUXIR_TEST_WANT="+want)
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("on a card of %d MB: %v\n%s", megabytes, err, out)
	}
}

// TestSmallCard is a part of TestStream in a process of its own, on a card that cannot hold the model, or, where no picture is wanted, not even a step of
// the streamed one. What does not fit is said in one line.
func TestSmallCard(t *testing.T) {
	model, want := os.Getenv("FLUXIR_TEST_MODEL"), os.Getenv("FLUXIR_TEST_WANT")
	if model == "" {
		t.Skip("run by TestStream on cuda")
	}
	exhausted := func(what string, err error) {
		if !errors.Is(err, ErrDevice) || !strings.Contains(fmt.Sprint(err), "device memory") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := Open(Options{Model: model, Device: "cuda", Tile: 32, Memory: 1, Stream: StreamOff})
	exhausted("resident weights on a card that cannot hold them", err)
	if want != "" {
		got, _, is := streamCase(t, Options{Model: model})
		if !is || sum(got) != want {
			t.Errorf("streamed %v; a picture with hash %s, want %s", is, sum(got), want)
		}
		return
	}
	r, err := Open(Options{Model: model, Device: "cuda", Tile: 32, Memory: 1, Stream: StreamOn})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 { // the device works on
		_, err := r.Restore(context.Background(), gradient(40, 20), nil)
		exhausted("a step for which there is no memory", err)
	}
}
