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
	Do    string `json:"do"`    // open, sample, close, probe
	Op    string `json:"op"`    // of open: a row of --list
	Shape string `json:"shape"` //
	DType string `json:"dtype"` //
	Cold  bool   `json:"cold"`  // of sample
}

// response is a line of stdout.
type response struct {
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // of one call
	Gate    float64 `json:"gate,omitempty"`
	FLOPs   int64   `json:"flops,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Run     *header `json:"run,omitempty"`
}

// server holds the opened row.
type server struct {
	bench *bench
	list  []benchmark
	now   subject
}

// answer serves requests until stdin ends.
func (o *options) answer(in io.Reader, out io.Writer, list []benchmark) error {
	d, err := bindings.OpenDevice(o.device, o.threads)
	if err != nil {
		return err
	}
	defer d.Close()
	s := &server{list: list}
	if err := d.Do(func() error { s.bench, err = newBench(d, o.seconds); return err }); err != nil {
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
	case "open":
		return s.open(q, r)
	case "sample":
		if s.now == nil {
			return fmt.Errorf("sample: no row is open")
		}
		if q.Cold {
			if err := s.bench.evict(); err != nil {
				return err
			}
		}
		r.Seconds, err = s.bench.once(s.now, 1)
		return err
	case "close":
		s.close()
		return nil
	}
	return fmt.Errorf("do: got %q, want open, sample, close or probe", q.Do)
}

// open places and checks a row.
func (s *server) open(q *request, r *response) (err error) {
	s.close()
	for i := range s.list {
		b := &s.list[i]
		if b.Op != q.Op || b.Shape != q.Shape || b.DType != q.DType {
			continue
		}
		if s.now, err = b.open(s.bench.device); err != nil {
			s.now = nil
			return err
		}
		if r.Gate, err = s.now.check(); err != nil {
			return gateError{err}
		}
		r.FLOPs, r.Bytes = b.FLOPs, b.Bytes
		if counts, ok := s.now.(interface{ flops() int64 }); ok {
			if err := s.now.run(); err != nil {
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
	if s.now != nil {
		s.now.free()
		s.now = nil
	}
}
