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
	LoadSectors     float64 `json:"global_load_sectors"`
	LoadEfficiency  float64 `json:"global_load_efficiency"`
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
	bytes     float64 // 32-byte sectors of global loads and stores by Case.Bytes and what is read again; what several blocks read counts each time
	sectors   float64 // 32-byte sectors touched by those that the bytes would fill
	conflicts float64 // additional cycles for bank conflicts, as a part of shared memory requests
}

// counterCase is a representative shape and its bars.
type counterCase struct {
	Case
	bar   counters
	again []string // inputs that must be read twice, because they do not fit into a multiprocessor and all of them decides what is done to each
}

func counterCases() []counterCase {
	same := pads(1, 1, 1, 1, 1)
	joint := func(L, D int) attentionShape { return attentionShape{B: 1, Lq: L, Lk: L, H: 2, D: D} }
	normed := func(L, D int) attentionShape {
		s := joint(L, D)
		s.norm = &qkNormArgs{L / 4, true, true}
		return s
	}
	half := func(c Case) Case { // one of the two gradients
		c.FLOPs /= 2
		return c
	}
	forward := counters{mma: 1.1, sectors: 1.02, conflicts: 0.02}
	backward := counters{mma: 1.4 + 0.01, sectors: 1.02, conflicts: 0.02} // seven products where the formula has five: attention_backward.cu
	conv := counters{mma: 1.1, sectors: 1.1, conflicts: 0.02}
	weights := counters{mma: 1.12, sectors: 1.1, conflicts: 0.02} // db is one more column, and here that opens a tile
	exact := counters{sectors: 1.1, conflicts: 0.02}              // f32: no mma
	once := counters{bytes: 1.1, sectors: 1.02}                   // bound by memory
	cases := []counterCase{
		{attentionForward(bindings.BF16, joint(256, 128)), forward, nil},
		{attentionForward(bindings.BF16, joint(256, 64)), forward, nil},
		{attentionForward(bindings.BF16, joint(256, 32)), forward, nil},
		{attentionForward(bindings.BF16, normed(256, 128)), forward, nil},
		{attentionForward(bindings.BF16, normed(256, 64)), forward, nil},
		{attentionForward(bindings.F32, joint(128, 64)), exact, nil},
		{attentionBackward(bindings.BF16, joint(256, 128)), backward, nil},
		{attentionBackward(bindings.BF16, joint(256, 64)), backward, nil},
		{attentionBackward(bindings.BF16, normed(256, 128)), backward, nil},
		{attentionBackward(bindings.BF16, normed(256, 64)), backward, nil},
		{attentionBackward(bindings.F32, joint(128, 64)), exact, nil},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, same}), conv, nil},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 128, 3, 3, same}), conv, nil},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 64, 1, 1, pads(1, 0, 0, 0, 0)}), conv, nil},
		{conv2DForward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, pads(2, 0, 0, 1, 1)}), conv, nil},
		{conv2DForward(bindings.F32, convShape{1, 32, 32, 32, 64, 3, 3, same}), exact, nil},
		{half(conv2DBackward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, same}).Without("dw", "db")), conv, nil},
		{half(conv2DBackward(bindings.BF16, convShape{1, 32, 32, 64, 64, 3, 3, pads(2, 0, 0, 1, 1)}).Without("dw", "db")), conv, nil},
		{half(conv2DBackward(bindings.BF16, convShape{1, 32, 32, 64, 128, 3, 3, same}).Without("dx")), weights, nil},
	}
	for _, c := range memoryBound() {
		cases = append(cases, counterCase{c, once, nil})
	}
	// Every 16 rows of a thread read dm once more, and nothing else is read.
	spread := counters{bytes: 1.14, sectors: 1.02}
	cases = append(cases, counterCase{seSqueezeBackward(bindings.BF16, 1, 256, 3072), spread, nil})
	// The weights are read once, the vectors they meet by every warp, from the caches.
	cases = append(cases, counterCase{seExciteForward(bindings.BF16, 1, 3072, 192), exact, nil},
		counterCase{seExciteBackward(bindings.BF16, 1, 3072, 192), exact, nil})
	// A group of 32768 pixels and 4 channels takes 256 KB; an SM has at most 227.
	return append(cases, counterCase{groupNormForward(bindings.BF16, true, 32, 0, 1, 128, 256, 128), once, []string{"x"}},
		counterCase{groupNormBackward(bindings.BF16, true, 32, 0, 1, 128, 256, 128), once, []string{"x", "dy"}})
}

// memoryBound lists the hot ops that one pass over memory is enough for.
func memoryBound() []Case {
	const bf16, f32 = bindings.BF16, bindings.F32
	heads := qkNormRope{1, 64, 24, 128, true, true}
	return []Case{
		actForward(bf16, bindings.ActGELUTanh, 1, 256, 3072), actBackward(bf16, bindings.ActGELUTanh, 1, 256, 3072),
		actForward(f32, bindings.ActSiLU, 1, 256, 256), actBackward(f32, bindings.ActSiLU, 1, 256, 256),
		add(bf16, 1, 256, 3072), axpbyForward(f32, f32, f32, 1, 256, 256), axpbyBackward(f32, f32, 1, 256, 256),
		adalnForward(bf16, 0, 1, 256, 3072), adalnBackward(bf16, 0, false, 1, 192, 3072),
		adalnForward(f32, 0, 1, 256, 256), adalnBackward(f32, 0, false, 1, 192, 256),
		gateForward(bf16, bf16, 1, 256, 3072), gateBackward(bf16, bf16, false, 1, 256, 3072),
		gateForward(f32, f32, 1, 256, 256), gateBackward(f32, f32, false, 1, 256, 256),
		seSqueezeForward(bf16, 1, 512, 3072),
		qkNormRopeForward(bf16, heads), qkNormRopeBackward(bf16, heads),
		layout(bf16, f32, "cast", nil, nil, 1, 256, 3072), layout(f32, bf16, "cast", nil, nil, 1, 256, 3072),
		channelsLast(bf16, f32, 1, 64, 64, 64), pack(bf16, 1, 64, 64, 64), unpack(bf16, 1, 64, 64, 64),
		fill(bf16, 256, 3072), upsampleForward(bf16, 1, 32, 32, 128), upsampleBackward(bf16, 1, 32, 32, 128),
		flowLossForward(bf16, 1, 1024, 256), flowLossBackward(bf16, 1, 1024, 256),
		pixelLossForward(f32, bindings.DistanceCharbonnier, 1, 256, 256, 3), pixelLossBackward(f32, bindings.DistanceCharbonnier, 1, 256, 256, 3),
		gradSumSquares(1 << 20), adamwStep(bf16, 1, 4, 3, 1<<18, 1<<18), adamwStep(f32, 1, 4, 3, 1<<18, 1<<18),
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
			mma := "–"
			if got.mma > 0 {
				mma = fmt.Sprintf("%.2f", got.mma)
			}
			fmt.Fprintf(&table, "| `%s` %s | %s | %.2f | %.2f | %.1f %% |\n", c.Op, c.Case.String(), mma, got.bytes, got.sectors, 100*got.conflicts)
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
	var flops, sectors, ideal, requests, conflicts float64
	for _, k := range kernels {
		flops += k.MMAFLOPs
		sectors += k.LoadSectors + k.StoreSectors
		ideal += k.LoadSectors*k.LoadEfficiency + k.StoreSectors*k.StoreEfficiency
		requests += k.SharedLoads + k.SharedStores
		conflicts += k.Conflicts
	}
	necessary := c.Bytes()
	for _, name := range c.again {
		necessary += c.arg(name).Len() * c.arg(name).DType.Size()
	}
	return counters{flops / float64(c.FLOPs), 32 * sectors / float64(necessary), sectors / ideal, conflicts / max(1, requests)}
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
