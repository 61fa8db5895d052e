package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/fluxir/fluxir/pkg/data"
)

func duration(seconds float64) string {
	switch {
	case seconds < 1e-3:
		return fmt.Sprintf("%.1f µs", seconds*1e6)
	case seconds < 1:
		return fmt.Sprintf("%.3g ms", seconds*1e3)
	}
	return fmt.Sprintf("%.3g s", seconds)
}

// roof is the least time that the peaks allow, and which of them sets it.
func (r *result) roof() (seconds float64, peak string) {
	p := r.run.Peaks
	memory, arithmetic := float64(r.Bytes)/1e9/p.Triad, float64(r.FLOPs)/1e9/p.compute(r.DType)
	if memory > arithmetic {
		return memory, "triad"
	}
	return arithmetic, r.DType
}

// best is the measurement that the percentages refer to: cold, where there is one.
func (r *result) best() *timing {
	if r.Cold != nil {
		return r.Cold
	}
	return r.Warm
}

var columns = []string{"op", "shape", "dtype", "cold", "± MAD", "warm", "GFLOP/s", "GB/s", "of the peak", "clock", "gate"}

// cells are a row of the table; first is the f32 probe that the clock is relative to.
func (r *result) cells() []string {
	t := r.best()
	cold := "-"
	if r.Cold != nil {
		cold = duration(r.Cold.Median)
	}
	bandwidth, share := "-", "-"
	if r.Bytes > 0 {
		bandwidth = fmt.Sprintf("%.1f", float64(r.Bytes)/1e9/t.Median)
	}
	if least, peak := r.roof(); least > 0 && !math.IsInf(least, 0) {
		share = fmt.Sprintf("%.0f %% %s", 100*least/t.Median, peak)
	}
	steady := ""
	if !t.Steady {
		steady = " !"
	}
	return []string{
		r.Op, r.Shape, r.DType, cold, fmt.Sprintf("%.1f %%%s", 100*t.MAD/t.Median, steady), duration(r.Warm.Median),
		fmt.Sprintf("%.0f", float64(r.FLOPs)/1e9/t.Median), bandwidth, share, clock(r.fullness()), fmt.Sprintf("%.2f", r.Gate),
	}
}

// describe is the header in words.
func (h *header) describe() string {
	number := func(x float64) string {
		if x == 0 {
			return "–"
		}
		return fmt.Sprintf("%.0f", x)
	}
	cpu := ""
	if h.CPU != "" && h.Device == "cpu" {
		cpu = fmt.Sprintf(" (%s; %s)", h.CPU, h.Features)
	}
	return fmt.Sprintf("%s: %s%s, tier %s, %d threads, %s, %s, protocol %d, %s\npeaks probed in this run, GFLOP/s: f32 %s, bf16 vectors %s, matrix units %s; triad %.1f GB/s",
		h.Device, h.Processor, cpu, h.ISA, h.Threads, h.Libraries, h.Go, h.Protocol, h.Time.Format("2006-01-02"),
		number(h.Peaks.F32), number(h.Peaks.BF16), number(h.Peaks.Matrix), h.Peaks.Triad)
}

// clock is a part of the f32 peak, "-" where that is not probed.
func clock(part float64) string {
	if math.IsNaN(part) || math.IsInf(part, 0) {
		return "-"
	}
	return fmt.Sprintf("%.2f", part)
}

// drift is how the f32 probe went over the run.
func drift(list []result) string {
	low, high := math.Inf(1), 0.0
	for _, r := range list {
		if r.run.Peaks.F32 > 0 {
			low, high = min(low, r.fullness()), max(high, r.fullness())
		}
	}
	if high == 0 {
		return "clock: not probed on this device"
	}
	text := fmt.Sprintf("clock: the f32 probe before and after each case reached %.0f to %.0f %% of the run's peak", 100*low, 100*high)
	if low < fullClock {
		text += "; below 90 % the processor was throttled or shared, and rows with such a clock are slow for it"
	}
	if high > 1.1 {
		text += "; above 110 % the peaks themselves were probed on a busy machine, and the shares of them are too large"
	}
	return text
}

// cardDrift is how the card's clock, power and temperature went over the run, and how often it was throttled.
func cardDrift(list []result) string {
	low, high := map[string]float64{}, map[string]float64{}
	samples, throttled := 0, map[string]int{}
	for _, r := range list {
		for _, t := range []*timing{r.Warm, r.Cold} {
			if t == nil {
				continue
			}
			for _, reading := range t.Card {
				samples++
				for name, v := range reading {
					switch v := v.(type) {
					case float64:
						if _, seen := low[name]; !seen {
							low[name], high[name] = v, v
						}
						low[name], high[name] = min(low[name], v), max(high[name], v)
					case string:
						throttled[v]++
					}
				}
			}
		}
	}
	text := fmt.Sprintf("card over %d samples:", samples)
	for _, x := range [][2]string{{"clock", "MHz"}, {"memory clock", "MHz"}, {"power", "W"}, {"temperature", "°C"}} {
		if _, seen := low[x[0]]; seen {
			text += fmt.Sprintf(" %s %.0f–%.0f %s;", x[0], low[x[0]], high[x[0]], x[1])
		}
	}
	if len(throttled) == 0 {
		return text + " never throttled"
	}
	for _, reason := range slices.Sorted(maps.Keys(throttled)) {
		text += fmt.Sprintf(" throttled %s in %d samples", reason, throttled[reason])
	}
	return text
}

// table prints columns side by side as a Markdown table.
func table(out io.Writer, head []string, rows [][]string) {
	width := make([]int, len(head))
	for _, cells := range append([][]string{head}, rows...) {
		for i, c := range cells {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	print := func(cells []string, pad string) {
		for i, c := range cells {
			fmt.Fprintf(out, "| %s%s ", c, strings.Repeat(pad, width[i]-utf8.RuneCountInString(c)))
		}
		fmt.Fprintln(out, "|")
	}
	print(head, " ")
	print(make([]string, len(head)), "-")
	for _, cells := range rows {
		print(cells, " ")
	}
}

// markdown replaces what stands between the markers of a file by the tables of the results, run by run.
func markdown(path, name string, list []result) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := fmt.Sprintf("<!-- begin %s -->\n", name), fmt.Sprintf("<!-- end %s -->", name)
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s: want the lines %q and %q", path, strings.TrimSpace(begin), end)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s", before, begin)
	for _, preset := range presets {
		printPreset(&b, preset, list)
	}
	fmt.Fprintf(&b, "\n%s\n\n%s%s", drift(list), end, after)
	return data.WriteFile(path, b.Bytes())
}

// printPreset is a heading, the machines and a table for each of them.
func printPreset(b io.Writer, preset string, list []result) {
	var rows [][]string
	var last string
	flush := func() {
		if len(rows) > 0 {
			table(b, columns, rows)
		}
		rows = nil
	}
	for _, r := range list {
		if r.Preset != preset {
			continue
		}
		machine := fmt.Sprintf("%s, %s, tier %s, %d threads", r.run.Processor, r.run.CPU, r.run.ISA, r.run.Threads)
		if machine != last {
			flush()
			fmt.Fprintf(b, "\n**%s**: %s\n\n", preset, strings.ReplaceAll(r.run.describe(), "\n", "; "))
			last = machine
		}
		rows = append(rows, r.cells())
	}
	flush()
}

// roofline draws every row over its arithmetic intensity, under the peaks.
func roofline(path string, list []result) error {
	p := plot.New()
	h := list[0].run
	p.Title.Text = fmt.Sprintf("%s, tier %s, %d threads", h.Processor, h.ISA, h.Threads)
	p.X.Label.Text, p.Y.Label.Text = "FLOP per necessary byte", "GFLOP/s"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	points := map[string]plotter.XYs{}
	lowest, highest := math.Inf(1), 0.0
	for _, r := range list {
		if r.Bytes == 0 || r.FLOPs == 0 {
			continue
		}
		x := float64(r.FLOPs) / float64(r.Bytes)
		points[r.DType] = append(points[r.DType], plotter.XY{X: x, Y: float64(r.FLOPs) / 1e9 / r.best().Median})
		lowest, highest = min(lowest, x), max(highest, x)
	}
	if highest == 0 {
		return fmt.Errorf("%s: no row with an arithmetic intensity to draw", path)
	}
	for i, dtype := range []string{"f32", "bf16"} {
		peak := h.Peaks.compute(dtype)
		ridge := peak / h.Peaks.Triad
		line, err := plotter.NewLine(plotter.XYs{{X: lowest / 2, Y: lowest / 2 * h.Peaks.Triad}, {X: ridge, Y: peak}, {X: max(2*highest, 2*ridge), Y: peak}})
		if err != nil {
			return err
		}
		line.Color = plotutil.Color(i)
		p.Add(line)
		p.Legend.Add(fmt.Sprintf("%s peak %.0f GFLOP/s, triad %.0f GB/s", dtype, peak, h.Peaks.Triad), line)
		if len(points[dtype]) == 0 {
			continue
		}
		dots, err := plotter.NewScatter(points[dtype])
		if err != nil {
			return err
		}
		dots.Color, dots.Shape, dots.Radius = plotutil.Color(i), draw.CircleGlyph{}, vg.Points(2.5)
		p.Add(dots)
		p.Legend.Add(dtype+" cases, cold", dots)
	}
	return p.Save(7*vg.Inch, 5*vg.Inch, path)
}
