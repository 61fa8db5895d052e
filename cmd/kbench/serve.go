package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/fluxir/fluxir/bindings"
)

// request is a line of stdin in --serve: tools/bench/peers.py asks for one sample at a time, in turn with the peer.
type request struct {
	Do    string `json:"do"`    // open, sample, close (all), clock, probe, memory, expect
	Op    string `json:"op"`    // of open: a row of --list
	Shape string `json:"shape"` //
	DType string `json:"dtype"` //
	ID    int    `json:"id"`    // of sample: what open answered
	Cold  bool   `json:"cold"`  // of sample
}

// response is a line of stdout.
type response struct {
	Error   string  `json:"error,omitempty"`
	ID      int     `json:"id"`
	Seconds float64 `json:"seconds,omitempty"` // of one call
	Gate    float64 `json:"gate,omitempty"`
	FLOPs   int64   `json:"flops,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Clock   float64 `json:"clock,omitempty"` // GFLOP/s of the f32 probe just now
	Run     *header `json:"run,omitempty"`
	Memory  *memory `json:"memory,omitempty"`
	Expect  float64 `json:"expect,omitempty"` // seconds that kbench would take for the row, roughly
}

// memory is what the process and its device have used, in bytes. The peaks begin anew with each such answer, where Linux allows it.
type memory struct {
	Resident int64 `json:"resident"` // now
	Peak     int64 `json:"peak"`     // the most that was resident since the last answer
	Device   int64 `json:"device"`   // the most that buffers and workspaces took since the start
}

func (s *server) memory() (*memory, error) {
	info, err := s.bench.device.Info()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	m := &memory{Device: info.Peak}
	for l := range strings.Lines(string(text)) {
		var kib int64
		if name, value, _ := strings.Cut(l, ":"); name == "VmRSS" || name == "VmHWM" {
			if _, err := fmt.Sscan(value, &kib); err != nil {
				return nil, fmt.Errorf("/proc/self/status: %w", err)
			}
			if name == "VmRSS" {
				m.Resident = kib << 10
			} else {
				m.Peak = kib << 10
			}
		}
	}
	return m, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// server holds the opened rows.
type server struct {
	bench  *bench
	list   []benchmark
	opened []subject
	peaks  peaks // as probed last
}

// answer serves requests until stdin ends.
func (o *options) answer(in io.Reader, out io.Writer, list []benchmark) error {
	d, err := bindings.OpenDevice(o.device, o.threads)
	if err != nil {
		return err
	}
	defer d.Close()
	s := &server{list: list}
	s.bench = &bench{device: d, seconds: o.seconds}
	defer d.Do(func() error { s.close(); s.bench.free(); return nil })
	reply := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var q request
		var r response
		err := json.Unmarshal(lines.Bytes(), &q)
		if err == nil {
			err = d.Do(func() error { return s.answer(&q, &r) })
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := reply.Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (s *server) answer(q *request, r *response) (err error) {
	switch q.Do {
	case "probe":
		if r.Run, err = newHeader(s.bench.device); err == nil {
			r.Run.Peaks, err = s.bench.probe(5)
			s.peaks = r.Run.Peaks
		}
		return err
	case "clock":
		r.Clock, err = s.bench.clock()
		return err
	case "open":
		return s.open(q, r)
	case "sample":
		if q.ID < 0 || q.ID >= len(s.opened) {
			return fmt.Errorf("sample: no row %d is open", q.ID)
		}
		if q.Cold {
			if err := s.bench.evict(); err != nil {
				return err
			}
		}
		r.Seconds, err = s.bench.once(s.opened[q.ID], 1)
		return err
	case "close":
		s.close()
		return nil
	case "expect":
		b, err := s.find(q)
		if err == nil {
			r.Expect = s.bench.expected(b, s.peaks)
		}
		return err
	case "memory":
		r.Memory, err = s.memory()
		return err
	}
	return fmt.Errorf("do: got %q, want open, sample, close, clock, probe, memory or expect", q.Do)
}

// find is the row that a request names.
func (s *server) find(q *request) (*benchmark, error) {
	for i := range s.list {
		if b := &s.list[i]; b.Op == q.Op && b.Shape == q.Shape && b.DType == q.DType {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%s: no row %s %s %s; see --list", q.Do, q.Op, q.Shape, q.DType)
}

// open places and checks a row.
func (s *server) open(q *request, r *response) error {
	b, err := s.find(q)
	if err != nil {
		return err
	}
	x, err := b.open(s.bench.device)
	if err != nil {
		return err
	}
	r.ID, s.opened = len(s.opened), append(s.opened, x)
	if r.Gate, err = x.check(); err != nil {
		return gateError{err}
	}
	r.FLOPs, r.Bytes = b.FLOPs, b.Bytes
	if counts, ok := x.(interface{ flops() int64 }); ok {
		if err := x.run(); err != nil {
			return err
		}
		r.FLOPs = counts.flops()
	}
	debug.FreeOSMemory()
	return nil
}

func (s *server) close() {
	for _, x := range s.opened {
		x.free()
	}
	s.opened = nil
}
