package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/fluxir/fluxir/bindings"
)

// request is a line of stdin in --serve: tools/bench/peers.py asks for one sample at a time, in turn with the peer.
type request struct {
	Do    string `json:"do"`    // open, sample, close (all), clock, probe
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
}

// server holds the opened rows.
type server struct {
	bench  *bench
	list   []benchmark
	opened []subject
}

// answer serves requests until stdin ends.
func (o *options) answer(in io.Reader, out io.Writer, list []benchmark) error {
	d, err := bindings.OpenDevice(o.device, o.threads)
	if err != nil {
		return err
	}
	defer d.Close()
	s := &server{list: list}
	if err := d.Do(func() error { s.bench, err = newBench(d, o.seconds, false); return err }); err != nil {
		return err
	}
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
	}
	return fmt.Errorf("do: got %q, want open, sample, close, clock or probe", q.Do)
}

// open places and checks a row.
func (s *server) open(q *request, r *response) (err error) {
	for i := range s.list {
		b := &s.list[i]
		if b.Op != q.Op || b.Shape != q.Shape || b.DType != q.DType {
			continue
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
	return fmt.Errorf("open: no row %s %s %s; see --list", q.Op, q.Shape, q.DType)
}

func (s *server) close() {
	for _, x := range s.opened {
		x.free()
	}
	s.opened = nil
}
