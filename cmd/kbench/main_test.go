package main

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStatistics(t *testing.T) {
	for _, test := range []struct {
		samples     []float64
		median, mad float64
	}{{[]float64{3}, 3, 0}, {[]float64{5, 1}, 3, 2}, {[]float64{9, 1, 2}, 2, 1}, {[]float64{4, 1, 100, 2}, 3, 1.5}} {
		got := newTiming(test.samples, true)
		if got.Median != test.median || got.MAD != test.mad {
			t.Errorf("%v: median %v, MAD %v, want %v, %v", test.samples, got.Median, got.MAD, test.median, test.mad)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("median of nothing is a number")
	}
}

func kbench(args ...string) (string, error) {
	var out bytes.Buffer
	err := run(context.Background(), args, strings.NewReader(""), &out)
	return out.String(), err
}

// TestErrors: what is wrong is named, and the exit code says of which kind it is.
func TestErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.jsonl")
	torn := filepath.Join(t.TempDir(), "torn.jsonl")
	if err := os.WriteFile(torn, []byte("{\"run\":{}}\n{\"row\":"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--preset", "sd"}, 2, `"sd"`}, {[]string{"--op", "attn"}, 2, `--op: no row has "attn"`}, {[]string{"--shape", "7x7x7x7"}, 2, "--shape"},
		{[]string{"--dtype", "f16"}, 2, "--dtype"}, {[]string{"--seconds", "0"}, 2, "--seconds"}, {[]string{"--threads", "-1"}, 2, "--threads"},
		{[]string{"linear"}, 2, "unexpected"}, {[]string{"--nonsense"}, 2, "nonsense"}, {[]string{"--missing"}, 2, "--missing"},
		{[]string{"--from", missing, "--json", "x"}, 2, "--from"}, {[]string{"--budget", "-1"}, 2, "--budget"},
		{[]string{"--from", missing}, 1, missing}, {[]string{"--compare", missing}, 1, missing}, {[]string{"--from", torn}, 1, "line 2"},
		{[]string{"--op", "fill", "--device", "tpu"}, 7, "tpu"},
	} {
		_, err := kbench(test.args...)
		if exitCode(err) != test.code || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: code %d, %v; want code %d and %q", test.args, exitCode(err), err, test.code, test.want)
		}
	}
	if out, err := kbench("--help"); err != nil || !strings.Contains(out, "exit codes") {
		t.Errorf("help: %v", err)
	}
}

// TestRun takes one small row through everything: measured, stored, read again, compared, left out, tabled, drawn.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	file, md, svg := filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "a.md"), filepath.Join(dir, "a.svg")
	if err := os.WriteFile(md, []byte("text\n<!-- begin kbench -->\nstale\n<!-- end kbench -->\nmore\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	row := []string{"--preset", "nano", "--op", "axpby_forward", "--threads", "1", "--seconds", "0.01"}
	out, err := kbench(append(row, "--json", file, "--md", md, "--plot", svg)...)
	if err != nil || !strings.Contains(out, "axpby_forward | 16x32x32x12") {
		t.Fatalf("%v\n%s", err, out)
	}
	list, err := readResults(file)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d rows, %v", len(list), err)
	}
	r := list[0]
	if !(r.Gate >= 0 && r.Gate <= 1) || !(r.Cold.Median > 0) || len(r.Warm.Samples) < minSamples || r.FLOPs != 3*16*32*32*12 || !(r.run.Peaks.Triad > 0) || r.run.Threads != 1 {
		t.Errorf("%+v of %+v", r.row, r.run)
	}
	text, err := os.ReadFile(md)
	if err != nil || !strings.HasPrefix(string(text), "text\n") || !strings.HasSuffix(string(text), "more\n") || strings.Contains(string(text), "stale") || !strings.Contains(string(text), "| axpby_forward ") {
		t.Errorf("%v\n%s", err, text)
	}
	if drawn, err := os.ReadFile(svg); err != nil || !bytes.Contains(drawn, []byte("<svg")) {
		t.Errorf("plot: %v", err)
	}
	if out, err := kbench("--from", file, "--compare", file); err != nil || !strings.Contains(out, "(1.00)") {
		t.Errorf("%v\n%s", err, out)
	}
	for clock, left := range map[float64]int{0.5: 1, 0.95: 0} { // a row at a low clock is taken again
		r.Clock = clock * r.run.Peaks.F32
		j := &journal{old: []result{r}}
		if got := len(j.missing([]benchmark{r.benchmark}, r.run)); got != left {
			t.Errorf("clock %v: %d rows missing, want %d", clock, got, left)
		}
	}
}

// TestCompare: ratios of medians, and no comparison of runs on different machines.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, h header, median float64) string {
		j, err := openJournal(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		r := row{benchmark: benchmark{Preset: "nano", Op: "fill", Shape: "1", DType: "f32"}, Warm: newTiming([]float64{median}, true)}
		for _, l := range []line{{Run: &h}, {Row: &r}} {
			if err := j.add(l); err != nil {
				t.Fatal(err)
			}
		}
		return j.path
	}
	h := header{Protocol: protocol, Processor: "A", Threads: 2}
	other := h
	other.Threads = 1
	now, old, elsewhere := write("now", h, 0.5), write("old", h, 1), write("elsewhere", other, 1)
	read := func(path string) []result {
		list, err := readResults(path)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	var out bytes.Buffer
	if err := compare(&out, read(now), read(old), false); err != nil || !strings.Contains(out.String(), "2.00") {
		t.Errorf("%v\n%s", err, &out)
	}
	err := compare(&out, read(now), read(elsewhere), false)
	if exitCode(err) != 4 || !strings.Contains(err.Error(), "threads 2, was 1") {
		t.Errorf("other threads: %v", err)
	}
	if err := compare(&out, read(now), read(elsewhere), true); err != nil {
		t.Errorf("forced: %v", err)
	}
}

// TestMergePeaks: runs on one machine share the highest peak, another machine's is left alone.
func TestMergePeaks(t *testing.T) {
	a, b, c := &header{Threads: 2, Peaks: peaks{F32: 3, Triad: 2}}, &header{Threads: 2, Peaks: peaks{F32: 1, Triad: 5}}, &header{Threads: 1, Peaks: peaks{F32: 9}}
	mergePeaks([]result{{run: a}, {run: b}, {run: c}})
	if want := (peaks{F32: 3, Triad: 5}); a.Peaks != want || b.Peaks != want || c.Peaks.F32 != 9 {
		t.Errorf("%v %v %v", a.Peaks, b.Peaks, c.Peaks)
	}
}

// TestEstimate: what is left is as guessed at first, then corrected by how long the rows before took.
func TestEstimate(t *testing.T) {
	b := &bench{seconds: 0.5}
	list := []benchmark{{work: 1e12, DType: "f32"}, {work: 3e12, DType: "f32"}, {FLOPs: 1e9, Bytes: 1e9, DType: "f32"}}
	e := newEstimate(list, func(c *benchmark) float64 { return b.expected(c, peaks{F32: 100, Triad: 10}) })
	if !(e.expected[1] > 2*e.expected[0] && e.expected[0] > e.expected[2]) {
		t.Errorf("expected seconds %v", e.expected)
	}
	total := e.expected[0] + e.expected[1] + e.expected[2]
	if left := e.left(0, 0).Seconds(); math.Abs(left-total) > 1e-6 {
		t.Errorf("at the start %v s are left, want %v", left, total)
	}
	twice := time.Duration((2*(e.expected[0]+10) - 10) * float64(time.Second))
	if left, want := e.left(1, twice).Seconds(), 2*(total-e.expected[0]); math.Abs(left-want) > 1e-3 {
		t.Errorf("%v s are left where the first row took twice as long, want %v", left, want)
	}
}

// TestServe: the dialogue that tools/bench/peers.py holds.
func TestServe(t *testing.T) {
	var out bytes.Buffer
	in := `{"do":"sample"}
{"do":"open","op":"axpby_forward","shape":"none","dtype":"f32"}
{"do":"open","op":"axpby_forward","shape":"16x32x32x12_16_x-f32-w-f32","dtype":"f32"}
{"do":"sample","cold":true}
{"do":"memory"}
{"do":"expect","op":"axpby_forward","shape":"16x32x32x12_16_x-f32-w-f32","dtype":"f32"}
{"do":"close"}
`
	if err := run(context.Background(), []string{"--serve", "--threads", "1"}, strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{"no row 0 is open", "no row axpby_forward none", `"gate"`, `"seconds"`, `"peak"`, `"expect"`, `{"id":0}`} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Fatalf("answer %d: want %s in\n%s", i, want, out.String())
		}
	}
}
