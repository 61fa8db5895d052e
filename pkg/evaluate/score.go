package evaluate

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/iqa"
)

// Pair is one picture to score and what belongs to it; Reference and Input may be "".
type Pair struct{ Name, Result, Reference, Input string }

// Pairs lists results, files or folders, with their references and inputs: of a folder the file of the same name, with any extension.
func Pairs(result, reference, input string) ([]Pair, error) {
	files, err := Photos([]string{result})
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	for _, file := range files {
		p := Pair{Name: filepath.Base(file), Result: file}
		if p.Reference, err = partner(reference, file); err == nil {
			p.Input, err = partner(input, file)
		}
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
	return pairs, nil
}

// partner is place itself, if it is a file, or the picture in that folder with the name of file.
func partner(place, file string) (string, error) {
	if place == "" {
		return "", nil
	}
	info, err := os.Stat(place)
	if err != nil || !info.IsDir() {
		return place, err
	}
	name := filepath.Base(file)
	if exact := filepath.Join(place, name); fileExists(exact) {
		return exact, nil
	}
	stem := strings.TrimSuffix(name, filepath.Ext(name))
	entries, err := os.ReadDir(place)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if _, err := data.FormatOf(e.Name()); err == nil && strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())) == stem {
			return filepath.Join(place, e.Name()), nil
		}
	}
	return "", fmt.Errorf("%s: no picture for %s in this folder", place, file)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// The kinds of a Line.
const (
	KindResult = "result"
	KindInput  = "input"
)

// Line is one score with its protocol.
type Line struct {
	Image, Kind, Metric string
	Value               float64
	Protocol            string
}

// ScoreOptions say how pairs are scored.
type ScoreOptions struct {
	Metrics []*iqa.Metric // those that need a reference are left out of pairs without one
	Setup   iqa.Setup
	Shrink  int // > 0: lq-consistency, PSNR between result and input, both reduced to 1/Shrink of the input's size
	Log     io.Writer
}

// ScorePairs scores results, and inputs where there are any. A pair or a metric that fails does not stop the others; its error is among those joined in err.
func ScorePairs(ctx context.Context, pairs []Pair, o ScoreOptions) (lines []Line, err error) {
	if err := o.Setup.Validate(); err != nil {
		return nil, err
	}
	var failed []error
	for _, p := range pairs {
		if err := ctx.Err(); err != nil {
			return lines, err
		}
		scored, errs := o.pair(p)
		failed = append(failed, errs...)
		lines = append(lines, scored...)
		if o.Log != nil {
			for _, l := range scored {
				fmt.Fprintf(o.Log, "%-28s %-7s %-15s %.5f\n", l.Image, l.Kind, l.Metric, l.Value)
			}
		}
	}
	return lines, errors.Join(failed...)
}

// pair scores one pair.
func (o ScoreOptions) pair(p Pair) (lines []Line, failed []error) {
	result, reference, input, err := p.load()
	if err != nil {
		return nil, []error{err}
	}
	for _, kind := range []string{KindInput, KindResult} {
		m, path := result, p.Result
		if kind == KindInput {
			m, path = input, p.Input
		}
		for _, metric := range o.Metrics {
			if m == nil || metric.Reference && reference == nil {
				continue
			}
			v, err := metric.Score(m, reference, o.Setup)
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", path, err))
				continue
			}
			lines = append(lines, Line{p.Name, kind, metric.Name, v, metric.Protocol(o.Setup)})
		}
	}
	if o.Shrink > 0 && input != nil {
		v, err := lqConsistency(result, input, o.Shrink)
		if err != nil {
			return lines, append(failed, fmt.Errorf("%s: %w", p.Result, err))
		}
		lines = append(lines, Line{p.Name, KindResult, "lq-consistency", v, fmt.Sprintf("lq-consistency psnr channel=rgb shrink=%d kernel=bicubic", o.Shrink)})
	}
	return lines, failed
}

// load reads the pictures of a pair, as 8 bits hold them; those that there are none of are nil.
func (p Pair) load() (result, reference, input *data.Image, err error) {
	for _, f := range []struct {
		path string
		to   **data.Image
	}{{p.Result, &result}, {p.Reference, &reference}, {p.Input, &input}} {
		if f.path == "" {
			continue
		}
		m, err := data.Load(f.path)
		if err != nil {
			return nil, nil, nil, err
		}
		m.Alpha = nil
		*f.to = rounded(m)
	}
	return result, reference, input, nil
}

// lqConsistency degrades the result again, by reduction, and compares with the input: what was invented below the reduced pixels does not show, what
// contradicts the input does.
func lqConsistency(result, input *data.Image, shrink int) (float64, error) {
	w, h := input.W/shrink, input.H/shrink
	if w < 1 || h < 1 {
		return 0, fmt.Errorf("lq-consistency: input of %dx%d pixels is too small for a reduction by %d", input.W, input.H, shrink)
	}
	if result.W*input.H != result.H*input.W {
		return 0, fmt.Errorf("lq-consistency: result of %dx%d and input of %dx%d pixels have different shapes", result.W, result.H, input.W, input.H)
	}
	return data.PSNR(rounded(data.Resize(result, w, h, data.Bicubic)), rounded(data.Resize(input, w, h, data.Bicubic)))
}

// Distribution is the summary of one metric over the images.
type Distribution struct {
	Kind, Metric, Protocol string
	Images                 int
	Mean, Median           float64
	Low, High              float64 // 95 % interval of the mean, by bootstrap
	LowerBetter            bool
}

// Distributions summarises lines by kind and metric, in their order. It refuses to mix protocols.
func Distributions(lines []Line) ([]Distribution, error) {
	var out []Distribution
	values := map[int][]float64{}
	for _, l := range lines {
		k := slices.IndexFunc(out, func(d Distribution) bool { return d.Kind == l.Kind && d.Metric == l.Metric })
		if k < 0 {
			k = len(out)
			out = append(out, Distribution{Kind: l.Kind, Metric: l.Metric, Protocol: l.Protocol, LowerBetter: lowerBetter(l.Metric)})
		}
		if err := iqa.Comparable(out[k].Protocol, l.Protocol); err != nil {
			return nil, fmt.Errorf("%s: %w", l.Image, err)
		}
		values[k] = append(values[k], l.Value)
	}
	for k := range out {
		d, v := &out[k], values[k]
		d.Images, d.Mean, d.Median = len(v), mean(v), median(v)
		d.Low, d.High = bootstrap(v)
	}
	return out, nil
}

func lowerBetter(name string) bool {
	d, _ := iqa.Find(name)
	return d.LowerBetter
}

func mean(v []float64) float64 {
	var s float64
	for _, x := range v {
		s += x
	}
	return s / float64(len(v))
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// bootstrap is the 95 % interval of the mean from 2000 resamplings with a fixed seed.
func bootstrap(v []float64) (low, high float64) {
	const draws = 2000
	rng := rand.New(rand.NewPCG(1, uint64(len(v))))
	means := make([]float64, draws)
	for i := range means {
		for range v {
			means[i] += v[rng.IntN(len(v))] / float64(len(v))
		}
	}
	slices.Sort(means)
	return means[draws/40], means[draws-1-draws/40]
}

// DistributionTable is a Markdown table.
func DistributionTable(w io.Writer, ds []Distribution) {
	fmt.Fprintln(w, "| metric | of | images | mean | 95 % of the mean | median | protocol |\n|---|---|---|---|---|---|---|")
	for _, d := range ds {
		arrow := "↑"
		if d.LowerBetter {
			arrow = "↓"
		}
		fmt.Fprintf(w, "| %s %s | %s | %d | %.4f | %.4f to %.4f | %.4f | %s |\n", d.Metric, arrow, d.Kind, d.Images, d.Mean, d.Low, d.High, d.Median, d.Protocol)
	}
}

var lineHeader = []string{"image", "kind", "metric", "value", "protocol"}

// WriteLines writes lines as CSV; ReadLines reads them.
func WriteLines(w io.Writer, lines []Line) error {
	c := csv.NewWriter(w)
	_ = c.Write(lineHeader)
	for _, l := range lines {
		_ = c.Write([]string{l.Image, l.Kind, l.Metric, strconv.FormatFloat(l.Value, 'g', -1, 64), l.Protocol})
	}
	c.Flush()
	return c.Error()
}

// ReadLines reads what WriteLines wrote; name is the file's, for messages.
func ReadLines(r io.Reader, name string) ([]Line, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(rows) < 2 || !slices.Equal(rows[0], lineHeader) {
		return nil, fmt.Errorf("%s: no scores; want the columns %s", name, strings.Join(lineHeader, ","))
	}
	var lines []Line
	for i, row := range rows[1:] {
		v, err := strconv.ParseFloat(row[3], 64)
		if err != nil || math.IsNaN(v) {
			return nil, fmt.Errorf("%s: line %d: value %q", name, i+2, row[3])
		}
		lines = append(lines, Line{row[0], row[1], row[2], v, row[4]})
	}
	return lines, nil
}

// Difference is one metric of two sets of scores of the same images.
type Difference struct {
	Metric    string
	Images    int
	A, B      float64 // means
	Low, High float64 // 95 % interval of the mean of B - A
	BWins     int     // images
}

// Compare compares the scores of two results. It refuses different protocols and different images.
func Compare(a, b []Line) ([]Difference, error) {
	type key struct{ image, metric string }
	other := map[key]Line{}
	for _, l := range b {
		if l.Kind == KindResult {
			other[key{l.Image, l.Metric}] = l
		}
	}
	var out []Difference
	values := map[string][2][]float64{}
	for _, l := range a {
		if l.Kind != KindResult {
			continue
		}
		m, ok := other[key{l.Image, l.Metric}]
		if !ok {
			return nil, fmt.Errorf("%s: only the first file has %s of it", l.Image, l.Metric)
		}
		if err := iqa.Comparable(l.Protocol, m.Protocol); err != nil {
			return nil, err
		}
		delete(other, key{l.Image, l.Metric})
		v, seen := values[l.Metric]
		if !seen {
			out = append(out, Difference{Metric: l.Metric})
		}
		values[l.Metric] = [2][]float64{append(v[0], l.Value), append(v[1], m.Value)}
	}
	for k := range other {
		return nil, fmt.Errorf("%s: only the second file has %s of it", k.image, k.metric)
	}
	for i := range out {
		d := &out[i]
		v := values[d.Metric]
		deltas := make([]float64, len(v[0]))
		for k := range deltas {
			if v[1][k] != v[0][k] { // two infinite ones have no difference either
				deltas[k] = v[1][k] - v[0][k]
			}
			if deltas[k] != 0 && (deltas[k] < 0) == lowerBetter(d.Metric) {
				d.BWins++
			}
		}
		d.Images, d.A, d.B = len(deltas), mean(v[0]), mean(v[1])
		d.Low, d.High = bootstrap(deltas)
	}
	return out, nil
}
