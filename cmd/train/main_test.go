package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fluxir/fluxir/internal/testmodel"
	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/train"
)

// TestMain lets the test's program be the command, so that tests can kill it.
func TestMain(m *testing.M) {
	if os.Getenv("FLUXIR_TEST_TRAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func command(args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), "FLUXIR_TEST_TRAIN=1", "OMP_WAIT_POLICY=passive")
	return c
}

// prepare makes a tiny model, a folder of photographs, and the arguments of a short run on them.
func prepare(t *testing.T, write func(dir string) error) (dir string, args []string) {
	t.Helper()
	dir = t.TempDir()
	if err := write(filepath.Join(dir, "model")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "photos"), 0o755); err != nil {
		t.Fatal(err)
	}
	for k := range 2 {
		m := data.New(144, 130)
		for i := range m.Pix {
			x, y := float64(i/3%144), float64(i/432)
			m.Pix[i] = float32(0.5 + 0.4*math.Sin(x*0.3+float64(k))*math.Cos(y*0.2+float64(i%3)))
		}
		if err := data.Save(filepath.Join(dir, "photos", fmt.Sprint(k, ".png")), m, data.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return dir, []string{"adapter", "--model", filepath.Join(dir, "model"), "--photos", filepath.Join(dir, "photos"), "--batch", "2", "--size", "32", "--threads", "1",
		"--workers", "2", "--steps", "24", "--save-every", "3", "--sample-every", "12", "--lr", "1e-3", "--accumulate", "2", "--set", "log_every=1", "--set", "warm_up=4",
		"--watts", "50", "--keep", "1"}
}

func nano(dir string) error { return testmodel.Write(dir, 0.02) }

// flux is a folder as FLUX.1's is published: no adapter.
func flux(dir string) error {
	return errors.Join(testmodel.WriteFlux(dir), os.Remove(filepath.Join(dir, "adapter.safetensors")))
}

func lines(run string) int {
	b, _ := os.ReadFile(filepath.Join(run, "metrics.jsonl"))
	return bytes.Count(b, []byte("\n"))
}

// waitFor returns when the run has logged n records.
func waitFor(t *testing.T, run string, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); lines(run) < n; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: no %d records within five minutes", run, n)
		}
	}
}

// A run that is killed at three random points and resumed ends in the same bits as one that is left alone.
func TestKilledRunIsExact(t *testing.T) {
	dir, args := prepare(t, nano)
	straight, killed := filepath.Join(dir, "straight"), filepath.Join(dir, "killed")
	if out, err := command(append(args, "--run", straight)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	args = append(args, "--run", killed)
	for range 3 {
		c := command(args...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		point := lines(killed) + 1 + rand.IntN(6)
		waitFor(t, killed, point)
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // anywhere in a step or while saving
		t.Logf("killed after %d records", point)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
	}
	if out, err := command(args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"adapter.state.safetensors", "adapter-best.state.safetensors", "export/adapter.safetensors"} {
		want, err := os.ReadFile(filepath.Join(straight, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(killed, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs after three kills (%v)", name, err)
		}
	}
	checkFolder(t, straight)
}

// checkFolder looks at what a finished run has left.
func checkFolder(t *testing.T, run string) {
	t.Helper()
	for pattern, n := range map[string]int{
		"adapter.toml": 1, "log.txt": 1, "events.out.tfevents.*": 1, "samples/adapter-eval-noise-*.png": 2, "adapter-0*.state.safetensors": 2, ".*.tmp": 0, "*.tmp": 0,
	} {
		if files, _ := filepath.Glob(filepath.Join(run, pattern)); len(files) != n {
			t.Errorf("%s: %v, want %d", pattern, files, n)
		}
	}
	c, err := train.RunCost(run)
	if err != nil {
		t.Fatal(err)
	}
	if c.Images != 24*2*2 || c.PFLOP <= 0 || math.Abs(c.KWh/c.Hours-0.050) > 0.02 {
		t.Errorf("cost %+v, want 96 images and about 50 W", c)
	}
	text, err := os.ReadFile(filepath.Join(run, "log.txt"))
	if err != nil || !bytes.Contains(text, []byte("frozen tensors did not move")) || !bytes.Contains(text, []byte("time  data")) {
		t.Errorf("log (%v): %s", err, text)
	}
	if _, err := train.LoadSettings("", filepath.Join(run, "adapter.toml"), nil); err != nil {
		t.Errorf("stored configuration: %v", err)
	}
}

// SIGTERM ends after the step with a state, exit code 0 and the command that resumes, also where it comes twice at once; a later second signal ends at once.
func TestSignals(t *testing.T) {
	dir, args := prepare(t, flux)
	run := filepath.Join(dir, "a run")
	args = append(args, "--run", run, "--steps", "100000", "--save-every", "100000", "--sample-every", "100000")
	c := command(args...)
	out := &bytes.Buffer{}
	c.Stderr = out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, run, 2)
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGTERM, os.Interrupt} {
		if err := c.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // the kernel merges equal signals that are pending
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "resume with: " + os.Args[0] + " adapter --model "; !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "--run '"+run+"'") {
		t.Errorf("output lacks %q: %s", want, out)
	}
	if _, err := os.Stat(filepath.Join(run, "adapter.state.safetensors")); err != nil {
		t.Error(err)
	}
	done := lines(run)
	c = command(append(args, "--accumulate", "60000", "--set", "seed=1")...) // a step that does not end
	reader, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	read := make([]byte, 1<<16)
	text := ""
	for !strings.Contains(text, "from step "+strconv.Itoa(done)+" of") {
		n, err := reader.Read(read)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		text += string(read[:n])
	}
	time.Sleep(time.Second) // into the step
	start := time.Now()
	for range 2 {
		if err := c.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sameSignal + 200*time.Millisecond)
	}
	_, _ = io.Copy(io.Discard, reader)
	if err := c.Wait(); c.ProcessState.ExitCode() != 130 || time.Since(start) > 20*time.Second {
		t.Errorf("two interrupts: %v after %v", err, time.Since(start))
	}
}

func TestBadInput(t *testing.T) {
	dir, args := prepare(t, nano)
	file := filepath.Join(dir, "run.toml")
	if err := os.WriteFile(file, []byte("stage = \"adapter\"\n[loss]\nflw = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	occupied := filepath.Join(dir, "occupied")
	if err := os.WriteFile(occupied, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	at := func(more ...string) []string {
		return append(append([]string{}, args...), append([]string{"--run", filepath.Join(dir, "run")}, more...)...)
	}
	for want, args := range map[string][]string{
		"run.toml:3: unknown key loss.flw": {"--config", file}, "stage: got \"nap\"": {"nap"}, "no stage": {"--config", os.DevNull}, "unknown flag": at("--nap"),
		"lr: got -1": at("--lr", "-1"), "no such model folder": at("--model", filepath.Join(dir, "none")), "no images": at("--photos", empty),
		"make photos": at("--photos", filepath.Join(dir, "none")), "size 33": at("--size", "33"), "not a directory": at("--run", filepath.Join(occupied, "x")),
		"no photograph has 160": at("--size", "160"), "--set nap=1:1: unknown key nap": at("--set", "nap=1"), "no such file": {"ledger", filepath.Join(dir, "none")},
		"no such device": at("--device", "tpu"),
	} {
		var text bytes.Buffer
		err := run(append([]string{"train"}, args...), &text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v; want %q", args, err, want)
		}
	}
}

// The plan is within a tenth of the true peak, for frozen and trained bases, both precisions, with and without recomputation, both families.
func TestPlanAgainstPeak(t *testing.T) {
	line := regexp.MustCompile(`memory: peak ([0-9.]+) MB, planned ([0-9.]+) MB`)
	for _, c := range []struct {
		name  string
		write func(string) error
		args  []string
	}{
		{"adapter", nano, []string{"adapter", "--batch", "8"}},
		{"tune", nano, []string{"tune", "--batch", "4", "--dtype", "bf16"}},
		{"recompute", flux, []string{"adapter", "--batch", "4", "--recompute"}},
	} {
		dir, args := prepare(t, c.write)
		args = append(append(args, "--run", filepath.Join(dir, "run"), "--steps", "2", "--size", "128", "--accumulate", "1"), c.args[1:]...)
		args[0] = c.args[0]
		var text bytes.Buffer
		if err := run(append([]string{"train"}, args...), &text); err != nil {
			t.Fatal(err)
		}
		m := line.FindStringSubmatch(text.String())
		if m == nil {
			t.Fatalf("%s: no comparison in %s", c.name, &text)
		}
		peak, _ := strconv.ParseFloat(m[1], 64)
		planned, _ := strconv.ParseFloat(m[2], 64)
		t.Logf("%s: %s", c.name, m[0])
		if math.Abs(planned/peak-1) > 0.1 {
			t.Errorf("%s: %s: off by more than a tenth", c.name, m[0])
		}
	}
}

// A base that is streamed trains an adapter to the same bits, takes less memory than it is large, and no other stage than the adapter's can have it.
func TestStreamedRun(t *testing.T) {
	dir, args := prepare(t, testmodel.WriteDeepFlux)
	args = append(args, "--steps", "2", "--batch", "1", "--accumulate", "1", "--sample-every", "100", "--save-every", "100")
	line := regexp.MustCompile(`memory: peak ([0-9.]+) MB, planned ([0-9.]+) MB`)
	var want []byte
	var resident float64
	for _, more := range [][]string{{"--recompute"}, {"--recompute", "--stream"}} {
		folder := filepath.Join(dir, fmt.Sprint("run", len(more)))
		var text bytes.Buffer
		if err := run(append(append([]string{"train"}, args...), append(more, "--run", folder)...), &text); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(folder, "export", "adapter.safetensors"))
		m := line.FindStringSubmatch(text.String())
		if err != nil || m == nil {
			t.Fatalf("%v: %v, %s", more, err, &text)
		}
		t.Logf("%v: %s", more, m[0])
		peak, _ := strconv.ParseFloat(m[1], 64)
		planned, _ := strconv.ParseFloat(m[2], 64)
		if math.Abs(planned/peak-1) > 0.1 {
			t.Errorf("%v: %s: off by more than a tenth", more, m[0])
		}
		if want == nil {
			want, resident = got, peak
		} else if !bytes.Equal(got, want) || resident-peak < 80 {
			t.Errorf("%v: adapter the same %v; takes %g MB, resident %g MB", more, bytes.Equal(got, want), peak, resident)
		}
	}
	if err := run(append([]string{"train", "tune", "--stream"}, args[1:]...), io.Discard); !errors.Is(err, train.ErrConfig) {
		t.Errorf("tune --stream: %v", err)
	}
}

// A run that cannot fit is refused before anything is loaded, and the option that helps is named.
func TestPlanRefuses(t *testing.T) {
	dir, args := prepare(t, nano)
	for hint, more := range map[string][]string{
		"it would with --recompute: ":   {"--batch", "8", "--size", "128", "--memory", "150"},
		"--batch 1 --accumulate 8192: ": {"--batch", "4096", "--size", "128", "--memory", "150"},
		"no option makes it fit":        {"--batch", "4096", "--size", "4096", "--memory", "10"},
	} {
		var text bytes.Buffer
		err := run(append([]string{"train"}, append(append(slices.Clone(args), "--plan", "--run", filepath.Join(dir, "run")), more...)...), &text)
		if !errors.Is(err, train.ErrMemory) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%v: %v; want %q", more, err, hint)
		}
	}
}
