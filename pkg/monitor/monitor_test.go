package monitor

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// fakeLibrary and fakeCard answer the calls of this package; any other would panic.
type fakeLibrary struct {
	nvml.Interface
	init nvml.Return
	card fakeCard
}

func (l fakeLibrary) Init() nvml.Return { return l.init }
func (l fakeLibrary) DeviceGetHandleByIndex(i int) (nvml.Device, nvml.Return) {
	if i != 1 {
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	return l.card, nvml.SUCCESS
}

type fakeCard struct{ nvml.Device }

func (fakeCard) GetTotalEnergyConsumption() (uint64, nvml.Return) { return 7_200_000, nvml.SUCCESS }
func (fakeCard) GetUtilizationRates() (nvml.Utilization, nvml.Return) {
	return nvml.Utilization{Gpu: 97}, nvml.SUCCESS
}
func (fakeCard) GetMemoryInfo() (nvml.Memory, nvml.Return) {
	return nvml.Memory{Used: 3e9}, nvml.SUCCESS
}
func (fakeCard) GetPowerUsage() (uint32, nvml.Return) { return 640_000, nvml.SUCCESS }
func (fakeCard) GetTemperature(nvml.TemperatureSensors) (uint32, nvml.Return) {
	return 0, nvml.ERROR_NOT_SUPPORTED
}
func (fakeCard) GetClockInfo(nvml.ClockType) (uint32, nvml.Return) { return 1755, nvml.SUCCESS }
func (fakeCard) GetCurrentClocksThrottleReasons() (uint64, nvml.Return) {
	return nvml.ClocksEventReasonSwPowerCap | nvml.ClocksEventReasonGpuIdle | 1<<40, nvml.SUCCESS
}

func TestCard(t *testing.T) {
	t.Setenv("CUDA_VISIBLE_DEVICES", "")
	var said []string
	say := func(text string) { said = append(said, text) }
	if findCard(fakeLibrary{init: nvml.ERROR_LIBRARY_NOT_FOUND}, "cuda", say) != nil || findCard(fakeLibrary{}, "cuda:3", say) != nil || len(said) != 2 {
		t.Errorf("absent library and card: said %q", said)
	}
	t.Setenv("CUDA_VISIBLE_DEVICES", "4,1")
	said = nil
	c := findCard(fakeLibrary{}, "cuda:1", say)
	if c == nil {
		t.Fatal("no card")
	}
	var words []string
	for _, v := range c.read() {
		words = append(words, v.String())
	}
	if got, want := strings.Join(words, "; "), "utilisation 97 %; memory 3000 MB; power 640 W; clock 1755 MHz; memory clock 1755 MHz; throttled by power cap, reason 0x10000000000"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if joules, ok := c.energy(); !ok || joules != 7200 {
		t.Errorf("energy %g, %v", joules, ok)
	}
	if len(said) != 1 || !strings.Contains(said[0], "temperature") {
		t.Errorf("said %q", said)
	}
}

// TestNoDriver opens a card where there may be no driver: the readings are then the process's, and the reason is said once.
func TestNoDriver(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a driver")
	}
	var said []string
	m := Open("cuda", 100, func(text string) { said = append(said, text) })
	m.Read()
	m.Read()
	if len(said) != 1 || !strings.Contains(said[0], "NVML") {
		t.Errorf("said %q", said)
	}
}

func TestProc(t *testing.T) {
	var said []string
	say := func(text string) { said = append(said, text) }
	m := Open("cpu", 0, say)
	if len(said) != 1 || !strings.Contains(said[0], "--watts") {
		t.Errorf("said %q", said)
	}
	m.watts = 3600
	m.last = m.last.Add(-10 * time.Second)
	for p := m.source.(*proc); p.cpu < 1e6; { // CPU time that must show; the counter's tick is 10 ms
		if now, ok := p.cpuSeconds(); !ok || now > p.cpu+0.05 {
			break
		}
		_ = math.Sqrt(2)
	}
	values, kWh := m.Read()
	if kWh < 0.01 || kWh > 0.02 {
		t.Errorf("3.6 kW for 10 s are %g kWh", kWh)
	}
	seen := map[string]float64{}
	for _, v := range values {
		seen[v.Name] = v.Value
	}
	if seen["rss"] < 1 || seen["rss"] > 1e5 || seen["cores"] <= 0 || seen["cores"] > 1e4 {
		t.Errorf("readings %v", seen)
	}

	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cpuinfo"), []byte("cpu MHz\t\t: 2000.0\nx : 1\ncpu MHz : 3000.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said = nil
	if v := openProc(root, say).read(); len(v) != 1 || v[0].Value != 2500 || len(said) != 2 {
		t.Errorf("readings %v, said %q", v, said)
	}
}
