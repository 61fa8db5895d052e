package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/data"
)

// header describes a run: the machine, what was opened on it, and what it was seen to reach.
type header struct {
	Protocol  int       `json:"protocol"`
	Time      time.Time `json:"time"`
	Device    string    `json:"device"`
	Processor string    `json:"processor"` // or card
	CPU       string    `json:"cpu"`       // family, model, stepping
	Features  string    `json:"features"`  // those of the CPU that decide which kernels can run
	ISA       string    `json:"isa"`       // tier in use
	Threads   int       `json:"threads"`
	Libraries string    `json:"libraries"`
	Go        string    `json:"go"`
	Peaks     peaks     `json:"peaks"`
}

// row is one measured case.
type row struct {
	benchmark
	Gate  float64 `json:"gate"`  // largest error as a part of what is allowed
	Clock float64 `json:"clock"` // GFLOP/s of the f32 probe just before and just after, the lower
	Warm  *timing `json:"warm"`
	Cold  *timing `json:"cold,omitempty"` // nil for whole blocks
}

// line is one of a results file: a header, or a row of the run whose header came last.
type line struct {
	Run *header `json:"run,omitempty"`
	Row *row    `json:"row,omitempty"`
}

// result is a row with its run.
type result struct {
	*row
	run *header
}

// key tells whether two rows measure the same.
func (r *result) key() string {
	return fmt.Sprint(r.benchmark.String(), " ", r.run.Device, " ", r.run.Threads, " ", r.run.ISA)
}

// fullness is the row's clock as a part of its run's peak.
func (r *result) fullness() float64 { return r.Clock / r.run.Peaks.F32 }

// newHeader describes the open device, without the peaks.
func newHeader(d *bindings.Device) (*header, error) {
	info, err := d.Info()
	if err != nil {
		return nil, err
	}
	h := &header{
		Protocol: protocol, Time: time.Now().UTC().Truncate(time.Second), Device: info.Device, Processor: info.Name, ISA: info.ISA, Threads: info.Threads,
		Libraries: info.Libraries, Go: runtime.Version(),
	}
	h.CPU, h.Features = cpu()
	return h, nil
}

// cpu reads what Linux says of the processor; empty elsewhere. Virtual machines often hide its name.
func cpu() (id, features string) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", ""
	}
	field := func(name string) string {
		for l := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	var have []string
	flags := " " + field("flags") + " "
	for _, f := range []string{"avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16"} {
		if strings.Contains(flags, " "+f+" ") {
			have = append(have, f)
		}
	}
	return fmt.Sprintf("family %s model %s stepping %s", field("cpu family"), field("model"), field("stepping")), strings.Join(have, " ")
}

// differs names the first property in which two runs' times cannot be compared, "" for none.
func (h *header) differs(old *header) string {
	for _, p := range []struct {
		what     string
		now, old any
	}{
		{"protocol", h.Protocol, old.Protocol}, {"device", h.Device, old.Device}, {"processor", h.Processor, old.Processor}, {"CPU", h.CPU, old.CPU},
		{"tier", h.ISA, old.ISA}, {"threads", h.Threads, old.Threads},
	} {
		if p.now != p.old {
			return fmt.Sprintf("%s %v, was %v", p.what, p.now, p.old)
		}
	}
	return ""
}

// readResults reads a results file; the last measurement of a case counts.
func readResults(path string) ([]result, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []result
	at := map[string]int{}
	var run *header
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<24)
	for n := 1; lines.Scan(); n++ {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		switch {
		case l.Run != nil:
			run = l.Run
		case l.Row == nil || l.Row.Warm == nil || run == nil:
			return nil, fmt.Errorf("%s: line %d: neither a run nor a row of one", path, n)
		default:
			r := result{l.Row, run}
			if i, ok := at[r.key()]; ok {
				list[i] = r
				continue
			}
			at[r.key()] = len(list)
			list = append(list, r)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// mergePeaks gives the runs of one machine, slices of a long one, the highest peaks of them all: what else runs on a machine only lowers a probe.
func mergePeaks(list []result) {
	for i := range list {
		for j := range list[:i] {
			a, b := list[i].run, list[j].run
			if a == b || a.differs(b) != "" {
				continue
			}
			best := peaks{max(a.Peaks.F32, b.Peaks.F32), max(a.Peaks.BF16, b.Peaks.BF16), max(a.Peaks.Matrix, b.Peaks.Matrix), max(a.Peaks.Triad, b.Peaks.Triad)}
			a.Peaks, b.Peaks = best, best
		}
	}
}

// journal appends a run to a results file, which is whole after every row.
type journal struct {
	path string
	data bytes.Buffer
	old  []result
}

// openJournal keeps what the file holds.
func openJournal(path string) (*journal, error) {
	j := &journal{path: path}
	var err error
	if j.old, err = readResults(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	j.data.Write(old)
	return j, nil
}

// missing are the rows that the file has not got of a run like h, or at a low clock only.
func (j *journal) missing(list []benchmark, h *header) []benchmark {
	have := map[string]bool{}
	for _, r := range j.old {
		if h.differs(r.run) == "" && r.fullness() >= fullClock {
			have[r.benchmark.String()] = true
		}
	}
	return slices.DeleteFunc(list, func(b benchmark) bool { return have[b.String()] })
}

func (j *journal) add(l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	j.data.Write(append(text, '\n'))
	return data.WriteFile(j.path, j.data.Bytes())
}

// errRefused says that two runs cannot be compared.
type errRefused struct{ error }

// compare prints, for every row that both have, how much faster it became.
func compare(out io.Writer, now, old []result, force bool) error {
	before := map[string]result{}
	for _, r := range old {
		before[r.benchmark.String()] = r
	}
	var rows [][]string
	for _, r := range now {
		o, ok := before[r.benchmark.String()]
		if !ok {
			continue
		}
		if why := r.run.differs(o.run); why != "" && !force {
			return errRefused{fmt.Errorf("not comparable: %s (--force compares all the same)", why)}
		}
		cells := []string{r.Op, r.Shape, r.DType}
		for _, pair := range [][2]*timing{{r.Cold, o.Cold}, {r.Warm, o.Warm}} {
			if pair[0] == nil || pair[1] == nil {
				cells = append(cells, "-", "-", "-")
				continue
			}
			cells = append(cells, duration(pair[1].Median), duration(pair[0].Median), ratio(pair[0], pair[1]))
		}
		rows = append(rows, append(cells, clock(min(r.fullness(), o.fullness()))))
	}
	if len(rows) == 0 {
		return errRefused{fmt.Errorf("not comparable: no case is in both")}
	}
	table(out, []string{"op", "shape", "dtype", "cold, was", "is", "speed", "warm, was", "is", "speed", "clock"}, rows)
	return nil
}

// ratio is the speed-up; in parentheses where it is within three times the noise of both.
func ratio(now, old *timing) string {
	text := fmt.Sprintf("%.2f", old.Median/now.Median)
	if d := old.Median - now.Median; d*d <= 9*(now.MAD*now.MAD+old.MAD*old.MAD) {
		return "(" + text + ")"
	}
	return text
}
