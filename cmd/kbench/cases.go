package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/bindings/optest"
)

// benchmark is one row: what to run, and what any implementation of it must compute and move.
type benchmark struct {
	Preset string `json:"preset"`
	Op     string `json:"op"`
	Shape  string `json:"shape"`
	DType  string `json:"dtype"`
	FLOPs  int64  `json:"flops"`
	Bytes  int64  `json:"bytes"` // each input read once, each output written once; 0: not counted

	work float64 // of a block, whose FLOPs are counted when it runs: about as many, for the estimate of how long a run takes

	// open puts the case on a device. Called inside Do, as are the methods of what it returns.
	open func(d *bindings.Device) (subject, error)
}

// subject is an opened benchmark.
type subject interface {
	check() (ratio float64, err error) // the gate: the largest error as a part of what is allowed
	run() error                        // what is timed
	free()
}

func (b *benchmark) String() string { return strings.Join([]string{b.Op, b.Shape, b.DType}, " ") }

// opSubject is one call of one op.
type opSubject struct {
	call    *optest.Call
	samples []optest.Sample
}

func (s opSubject) check() (float64, error) { return s.call.Check(s.samples) }
func (s opSubject) run() error              { return s.call.Run() }
func (s opSubject) free()                   { s.call.Free() }

// allBenchmarks are all rows: the ops, then the whole blocks.
func allBenchmarks() []benchmark {
	var list []benchmark
	for _, op := range optest.Ops {
		for _, b := range op.Bench() {
			list = append(list, benchmark{
				Preset: b.Preset, Op: b.Case.Op, Shape: b.Case.Shape(), DType: b.Case.DType.String(), FLOPs: int64(b.Case.FLOPs), Bytes: int64(b.Case.Bytes()),
				open: func(d *bindings.Device) (subject, error) {
					call, err := b.Place(d)
					return opSubject{call, b.Samples}, err
				},
			})
		}
	}
	return append(list, blockBenchmarks()...)
}

// filter is what the user asked for.
type filter struct {
	preset             string
	ops, shapes, dtype []string
}

var presets = []string{"flux", "nano", "vae", "all"}

// choose returns the rows that pass; an error names the part of the filter that nothing passes.
func (f *filter) choose(list []benchmark) ([]benchmark, error) {
	if !slices.Contains(presets, f.preset) {
		return nil, usageError(fmt.Sprintf("--preset: got %q, want %s", f.preset, strings.Join(presets, ", ")))
	}
	if f.preset != "all" {
		list = slices.DeleteFunc(list, func(b benchmark) bool { return b.Preset != f.preset })
	}
	for _, part := range []struct {
		flag  string
		words []string
		match func(b *benchmark, word string) bool
	}{
		{"op", f.ops, func(b *benchmark, word string) bool { return b.Op == word || strings.HasPrefix(b.Op, word+"_") }},
		{"shape", f.shapes, func(b *benchmark, word string) bool { return strings.Contains(b.Shape, word) }},
		{"dtype", f.dtype, func(b *benchmark, word string) bool { return b.DType == word }},
	} {
		if len(part.words) == 0 {
			continue
		}
		for _, word := range part.words {
			if !slices.ContainsFunc(list, func(b benchmark) bool { return part.match(&b, word) }) {
				return nil, usageError(fmt.Sprintf("--%s: no row has %q; see --list", part.flag, word))
			}
		}
		list = slices.DeleteFunc(list, func(b benchmark) bool {
			return !slices.ContainsFunc(part.words, func(word string) bool { return part.match(&b, word) })
		})
	}
	return list, nil
}
