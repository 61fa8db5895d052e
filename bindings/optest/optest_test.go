package optest

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/bindings"
)

// tiers of the CPU backend, lowest first.
var tiers = []string{"generic", "avx2", "avx512"}

// deviceKind is the device under test: FLUXIR_DEVICE, or the CPU.
func deviceKind() string {
	return cmp.Or(os.Getenv("FLUXIR_DEVICE"), "cpu")
}

// TestMain runs the tests on the device of FLUXIR_DEVICE; for the CPU once for each tier of this machine, each in a process of its own: oneDNN keeps the first
// tier it is told. With FLUXIR_ISA set, only for that one. FLUXIR_POISON makes the backend fill its workspace with NaN before every op. OpenMP's threads wait without spinning: on a busy machine
// two of them would take each other's time.
func TestMain(m *testing.M) {
	os.Setenv("FLUXIR_POISON", "1")
	os.Setenv("OMP_WAIT_POLICY", "passive")
	if os.Getenv("FLUXIR_ISA") != "" || deviceKind() != "cpu" {
		os.Exit(m.Run())
	}
	best, err := detectedTier()
	if err != nil {
		fmt.Fprintln(os.Stderr, "optest:", err)
		os.Exit(1)
	}
	status := 0
	run := func(tier, bf16, gemm string, flags ...string) {
		fmt.Println("tier", tier, bf16, gemm)
		child := exec.Command(os.Args[0], append(os.Args[1:], flags...)...)
		child.Env = append(os.Environ(), "FLUXIR_ISA="+tier, "FLUXIR_BF16="+bf16, "FLUXIR_GEMM="+gemm)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Run(); err != nil {
			status = 1
		}
	}
	for _, tier := range tiers[:slices.Index(tiers, best)+1] {
		if tier != best { // formulas against formulas: no kernel in it
			run(tier, "", "", "-test.skip=^TestGradient$")
			continue
		}
		run(tier, "", "")
	}
	if best == "avx512" { // the ways to multiply bf16, whichever is this processor's own
		for _, bf16 := range []string{"widen", "dot", "stand-in"} {
			run(best, bf16, "own", "-test.run=^TestConformance$/^(attention|linear|conv2d)", "-test.bench=^$")
		}
	}
	run(best, "", "onednn", "-test.run=^TestConformance$/^linear", "-test.bench=^$")
	os.Exit(status)
}

func detectedTier() (string, error) {
	d, err := bindings.OpenDevice("cpu", 1)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return isa(d), nil
}

func isa(d *bindings.Device) string {
	var info bindings.Info
	_ = d.Do(func() (err error) {
		info, err = d.Info()
		return err
	})
	return info.ISA
}

// device is one device under test; its second context has another number of threads.
type device struct {
	name          string
	first, second *bindings.Device
}

// openDevice opens the device under test twice, on the CPU with one and with two threads.
func openDevice(t *testing.T) device {
	first, err := bindings.OpenDevice(deviceKind(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(first.Close)
	second, err := bindings.OpenDevice(deviceKind(), 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Close)
	dev := device{isa(first), first, second}
	if want := os.Getenv("FLUXIR_ISA"); deviceKind() == "cpu" && dev.name != want {
		t.Fatalf("FLUXIR_ISA=%s, but the CPU backend uses %s", want, dev.name)
	}
	return dev
}

// worstRatio is the largest error seen as a part of what is allowed, by op, dtype and device.
type worstRatio map[[3]string]float64

func TestConformance(t *testing.T) {
	dev := openDevice(t)
	table := worstRatio{}
	for _, op := range Ops {
		for _, c := range op.Cases() {
			t.Run(c.Op+"/"+c.String(), func(t *testing.T) {
				ref, err := NewReference(&c)
				if err != nil {
					t.Fatal(err)
				}
				for _, variant := range c.Variants() {
					ratio := checkVariant(t, ref, dev, variant)
					key := [3]string{c.Op, c.DType.String(), dev.name}
					table[key] = max(table[key], ratio)
				}
			})
		}
	}
	t.Log(table)
}

// checkVariant runs one layout of a case: value, guards, twice the same bits and no memory taken by the second call, other thread count the same
// bits.
func checkVariant(t *testing.T, ref *Reference, dev device, variant Variant) (ratio float64) {
	t.Helper()
	var outs [3]Values
	runs := []struct {
		d    *bindings.Device
		outs []Values
	}{{dev.first, outs[:2]}, {dev.second, outs[2:]}}
	for _, run := range runs {
		err := run.d.Do(func() error { return runCase(run.d, ref, variant, run.outs) })
		var status *bindings.Error
		if errors.As(err, &status) && status.Status == bindings.StatusUnsupported && !isTier(dev.name) {
			t.Skip(err)
		}
		if err != nil {
			t.Errorf("%s: %v", variant.Name, err)
			return 0
		}
	}
	if ref.c.Empty() {
		return 0
	}
	ratio, err := ref.Check(outs[0])
	if err != nil {
		t.Errorf("%s: %v", variant.Name, err)
	}
	if at := differs(outs[0], outs[1]); at != "" {
		t.Errorf("%s: the second call gives other bits: %s", variant.Name, at)
	}
	if at := differs(outs[0], outs[2]); at != "" {
		t.Errorf("%s: two threads give other bits than one: %s", variant.Name, at)
	}
	return ratio
}

func isTier(name string) bool { return slices.Contains(tiers, name) }

// runCase places a case on d and runs it once for each of outs.
func runCase(d *bindings.Device, ref *Reference, variant Variant, outs []Values) error {
	call, err := NewCall(d, ref.c, ref.in, variant)
	if err != nil {
		return err
	}
	defer call.Free()
	var allocated int64
	for i := range outs {
		if err := call.Reset(); err != nil {
			return err
		}
		if err := call.Run(); err != nil {
			return err
		}
		if outs[i], err = call.Outputs(); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if i > 0 && info.Allocated != allocated {
			return fmt.Errorf("call %d changed the allocated bytes from %d to %d", i+1, allocated, info.Allocated)
		}
		allocated = info.Allocated
	}
	return nil
}

// differs names the first element whose bits differ, "" if there is none.
func differs(a, b Values) string {
	for name, x := range a {
		for i := range x {
			if math.Float64bits(x[i]) != math.Float64bits(b[name][i]) {
				return fmt.Sprintf("%s[%d]: %v, %v", name, i, x[i], b[name][i])
			}
		}
	}
	return ""
}

// String is the closing table.
func (w worstRatio) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "largest error as a part of what is allowed\n%-28s %-6s %-10s %s\n", "op", "dtype", "device", "ratio")
	keys := make([][3]string, 0, len(w))
	for key := range w {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(x, y [3]string) int {
		return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]), cmp.Compare(x[2], y[2]))
	})
	for _, key := range keys {
		fmt.Fprintf(&b, "%-28s %-6s %-10s %.2f\n", key[0], key[1], key[2], w[key])
	}
	return b.String()
}

// TestGradient holds every backward formula against central differences of its forward formula.
func TestGradient(t *testing.T) {
	for _, op := range Ops {
		for _, c := range op.Cases() {
			if c.Forward == nil || c.Empty() || c.DType != bindings.F32 {
				continue
			}
			t.Run(c.Op+"/"+c.String(), func(t *testing.T) {
				if err := CheckGradient(&c); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
