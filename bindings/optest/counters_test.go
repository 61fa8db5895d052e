package optest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fluxir/fluxir/bindings"
)

// kernelCounters are one kernel's counters in a report of the software CUDA device.
type kernelCounters struct {
	LoadBytes       float64 `json:"global_load_bytes"`
	LoadSectors     float64 `json:"global_load_sectors"`
	LoadEfficiency  float64 `json:"global_load_efficiency"`
	StoreBytes      float64 `json:"global_store_bytes"`
	StoreSectors    float64 `json:"global_store_sectors"`
	StoreEfficiency float64 `json:"global_store_efficiency"`
	SharedLoads     float64 `json:"shared_load_requests"`
	SharedStores    float64 `json:"shared_store_requests"`
	Conflicts       float64 `json:"bank_conflict_cycles"`
	MMAFLOPs        float64 `json:"mma_flops"`
}

// counters of one case, each as issued / necessary: 1 is the best there is. A bar is the most that is allowed, 0 meaning any.
type counters struct {
	mma       float64 // FLOPs of mma instructions by FLOPs of the formula
	bytes     float64 // global loads and stores by Case.Bytes; tiles that several blocks read count each time, though caches serve most of them
	sectors   float64 // 32-byte sectors touched by those that the bytes would fill
	conflicts float64 // additional cycles for bank conflicts, as a part of shared memory requests
}

// counterCase is a representative shape and its bars.
type counterCase struct {
	Case
	bar counters
}

func counterCases() []counterCase {
	same := pads(1, 1, 1, 1, 1)
	joint := func(L, D int) attentionShape { return attentionShape{B: 1, Lq: L, Lk: L, H: 2, D: D} }
	half := func(c Case) Case { // one of the two gradients
		c.FLOPs /= 2
		return c
	}
	forward := counters{mma: 1.1, sectors: 1.02, conflicts: 0.02}
	backward := counters{mma: 1.4 + 0.01, sectors: 1.02, conflicts: 0.02} // seven products where the formula has five: attention_backward.cu
	conv := counters{mma: 1.1, sectors: 1.1, conflicts: 0.02}
	weights := counters{mma: 1.12, sectors: 1.1, conflicts: 0.02} // db is one more column, and here that opens a tile
	exact := counters{sectors: 1.1, conflicts: 0.02}              // f32: no mma
	return []counterCase{
		{attentionForward(bindings.BF16, joint(256, 128)), forward},
		{attentionForward(bindings.BF16, joint(256, 64)), forward},
		{attentionForward(bindings.BF16, joint(256, 32)), forward},
		{attentionForward(bindings.F32, joint(128, 64)), exact},
		{attentionBackward(bindings.BF16, joint(256, 128)), backward},
		{attentionBackward(bindings.BF16, joint(256, 64)), backward},
		{attentionBackward(bindings.F32, joint(128, 64)), exact},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, same}), conv},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 128, 3, 3, same}), conv},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 64, 1, 1, pads(1, 0, 0, 0, 0)}), conv},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, pads(2, 0, 0, 1, 1)}), conv},
		{conv2DForward(bindings.F32, convShape{1, 32, 32, 32, 64, 3, 3, same}), exact},
		{half(conv2DBackward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, same}).Without("dw", "db")), conv},
		{half(conv2DBackward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, pads(2, 0, 0, 1, 1)}).Without("dw", "db")), conv},
		{half(conv2DBackward(bindings.BF16, convShape{1, 32, 32, 64, 128, 3, 3, same}).Without("dx")), weights},
	}
}

// TestCounters runs representative shapes on the software CUDA device, each in a process of its own, and holds what the device counted against
// the bars. The table is logged.
func TestCounters(t *testing.T) {
	reports := os.Getenv("SOFTCUDA_REPORT")
	if deviceKind() != "cuda" || reports == "" {
		t.Skip("counts on the software CUDA device only: make cuda-counters")
	}
	var table strings.Builder
	fmt.Fprintf(&table, "\n| case | mma | global bytes | sectors | bank conflicts |\n|---|---|---|---|---|\n")
	for i, c := range counterCases() {
		t.Run(c.Op+"/"+c.String(), func(t *testing.T) {
			report := strings.ReplaceAll(reports, "%p", fmt.Sprint("counters-", i))
			child := exec.Command(os.Args[0], "-test.run=^TestCountersChild$")
			child.Env = append(os.Environ(), "FLUXIR_COUNTERS_CASE="+strconv.Itoa(i), "SOFTCUDA_REPORT="+report)
			if out, err := child.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			kernels, err := readCounters(report)
			if err != nil {
				t.Fatal(err)
			}
			got := c.count(kernels)
			fmt.Fprintf(&table, "| `%s` %s | %.2f | %.2f | %.2f | %.1f %% |\n", c.Op, c.Case.String(), got.mma, got.bytes, got.sectors, 100*got.conflicts)
			for name, x := range kernels {
				t.Logf("%s: %+v", name, x)
			}
			exceeds(t, "mma", got.mma, c.bar.mma)
			exceeds(t, "global bytes", got.bytes, c.bar.bytes)
			exceeds(t, "sectors", got.sectors, c.bar.sectors)
			exceeds(t, "bank conflicts", got.conflicts, c.bar.conflicts)
		})
	}
	t.Log(table.String())
}

func exceeds(t *testing.T, what string, got, bar float64) {
	t.Helper()
	if bar != 0 && !(got <= bar) {
		t.Errorf("%s: %.3f, want at most %.3f", what, got, bar)
	}
}

// count sums the counters of a case's kernels.
func (c *counterCase) count(kernels map[string]kernelCounters) counters {
	var flops, bytes, sectors, ideal, requests, conflicts float64
	for _, k := range kernels {
		flops += k.MMAFLOPs
		bytes += k.LoadBytes + k.StoreBytes
		sectors += k.LoadSectors + k.StoreSectors
		ideal += k.LoadSectors*k.LoadEfficiency + k.StoreSectors*k.StoreEfficiency
		requests += k.SharedLoads + k.SharedStores
		conflicts += k.Conflicts
	}
	return counters{flops / float64(c.FLOPs), bytes / float64(c.Bytes()), sectors / ideal, conflicts / max(1, requests)}
}

var kernelName = regexp.MustCompile(`[a-z0-9_]*_kernel`)

// readCounters reads a report; kernels that differ in template arguments only are told apart by a number.
func readCounters(path string) (map[string]kernelCounters, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var report struct {
		Errors  int
		Kernels map[string]kernelCounters
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if report.Errors > 0 || len(report.Kernels) == 0 {
		return nil, fmt.Errorf("%s: %d errors, %d kernels", path, report.Errors, len(report.Kernels))
	}
	kernels := map[string]kernelCounters{}
	for mangled, k := range report.Kernels {
		name := strings.TrimLeft(kernelName.FindString(mangled), "0123456789_")
		for base, n := name, 2; ; n++ {
			if _, taken := kernels[name]; !taken {
				break
			}
			name = fmt.Sprint(base, " ", n)
		}
		kernels[name] = k
	}
	return kernels, nil
}

// TestCountersChild runs one case of TestCounters.
func TestCountersChild(t *testing.T) {
	index, err := strconv.Atoi(os.Getenv("FLUXIR_COUNTERS_CASE"))
	if err != nil {
		t.Skip("a part of TestCounters")
	}
	c := counterCases()[index]
	d, err := bindings.OpenDevice(deviceKind(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = d.Do(func() error {
		call, err := NewCall(d, &c.Case, c.inputs(true), Variant{})
		if err != nil {
			return err
		}
		defer call.Free()
		if err := call.Run(); err != nil {
			return err
		}
		return d.Sync()
	})
	if err != nil {
		t.Fatal(err)
	}
}
