package train

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/fluxir/fluxir/pkg/data"
)

// column is one number of a result: a column of the report.
type column struct {
	name   string
	digits int
	of     func(m Measures) float64
}

func columns() []column {
	list := []column{
		{"velocity loss", 4, func(m Measures) float64 { return mean(m.Velocity) }},
		{"pixel loss", 4, func(m Measures) float64 { return mean(m.Pixel) }},
	}
	for i, steps := range MeasureSteps {
		s := map[bool]string{true: "s"}[steps > 1]
		list = append(list,
			column{fmt.Sprintf("PSNR, %d step%s", steps, s), 2, func(m Measures) float64 { return m.Restored[i].PSNR }},
			column{fmt.Sprintf("SSIM, %d step%s", steps, s), 4, func(m Measures) float64 { return m.Restored[i].SSIM }})
	}
	return list
}

// ErrNoResults is wrapped by the complaint about a set of which no run has ended.
var ErrNoResults = errors.New("no run has ended")

// Results reads the runs that are finished: per arm, per seed; those that are not are nil.
func (a Ablation) Results() (list [][]*Result, err error) {
	for _, arm := range Arms() {
		row := make([]*Result, a.Seeds)
		for i := range row {
			if row[i], err = readResult(a.settings(arm, uint64(i+1))); errors.Is(err, fs.ErrNotExist) {
				row[i], err = nil, nil
			}
			if err != nil {
				return nil, err
			}
		}
		list = append(list, row)
	}
	return list, nil
}

// values of a column over the seeds of an arm, or, paired with other, the differences to it.
func values(c column, row, other []*Result) (list []float64) {
	for i, r := range row {
		switch {
		case r == nil || (other != nil && other[i] == nil):
		case other != nil:
			list = append(list, c.of(r.Measures)-c.of(other[i].Measures))
		default:
			list = append(list, c.of(r.Measures))
		}
	}
	return list
}

// halfWidth of the 95 % confidence interval of the mean, Student's t; infinite for one value.
func halfWidth(v []float64) float64 {
	if len(v) < 2 {
		return math.Inf(1)
	}
	_, sd := stat.MeanStdDev(v, nil)
	t := distuv.StudentsT{Mu: 0, Sigma: 1, Nu: float64(len(v) - 1)}
	return t.Quantile(0.975) * sd / math.Sqrt(float64(len(v)))
}

// Report writes tables between the markers `<!-- begin ablations -->` and `<!-- end ablations -->` of the Markdown file at path, and the plots
// beside it, named after it: -psnr.svg and -velocity.svg.
func (a Ablation) Report(path string) error {
	results, err := a.Results()
	if err != nil {
		return err
	}
	var first *Result
	for _, row := range results {
		for _, r := range row {
			if r != nil && first == nil {
				first = r
			}
		}
	}
	if first == nil {
		return fmt.Errorf("%s: %w", a.Settings.Run, ErrNoResults)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const begin, end = "<!-- begin ablations -->\n", "<!-- end ablations -->"
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s: want the lines %q and %q", path, strings.TrimSpace(begin), end)
	}
	name := strings.TrimSuffix(path, filepath.Ext(path))
	if err := errors.Join(plotPSNR(results, name+"-psnr.svg"), plotVelocity(results, name+"-velocity.svg")); err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString(before + begin)
	a.tables(&b, results, first)
	base := filepath.Base(name)
	fmt.Fprintf(&b, "\n![differences of PSNR](%s-psnr.svg)\n![velocity loss over t](%s-velocity.svg)\n", base, base)
	b.WriteString(end + after)
	return data.WriteFile(path, b.Bytes())
}

// tables are the means over the seeds and the differences to the baseline.
func (a Ablation) tables(b *bytes.Buffer, results [][]*Result, first *Result) {
	c := first.Config
	seconds, runs := 0.0, 0
	for _, row := range results {
		for _, r := range row {
			if r != nil {
				seconds, runs = seconds+r.Seconds, runs+1
			}
		}
	}
	fmt.Fprintf(b, "%d steps of %d crops of %d×%d pixels a run, learning rate %g, seeds 1 to %d; measured on %d pairs of that size. %d runs, %.0f minutes of training in all, %s.\n",
		c.Steps, c.Batch*c.Accumulate, c.Size, c.Size, c.LR, a.Seeds, first.Pairs, runs, seconds/60, first.Device)
	fmt.Fprintf(b, "The degraded images have %.2f dB and SSIM %.4f.\n\n", first.Input.PSNR, first.Input.SSIM)
	head := func(text string) {
		b.WriteString(text)
		for _, c := range columns() {
			b.WriteString(" " + c.name + " |")
		}
		b.WriteString("\n|---|---|" + strings.Repeat("---|", len(columns())) + "\n")
	}
	head("| mean ± sd over seeds | runs |")
	for i, arm := range Arms() {
		fmt.Fprintf(b, "| %s | %d |", arm.Name, len(values(columns()[0], results[i], nil)))
		for _, c := range columns() {
			b.WriteString(" " + meanAndSD(c, values(c, results[i], nil)) + " |")
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	head("| minus the baseline of the same seed, mean ± 95 % | |")
	for i, arm := range Arms()[1:] {
		fmt.Fprintf(b, "| %s | %s |", arm.Name, arm.Text)
		for _, c := range columns() {
			b.WriteString(" " + difference(c, values(c, results[i+1], results[0])) + " |")
		}
		b.WriteString("\n")
	}
}

func meanAndSD(c column, v []float64) string {
	switch len(v) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%.*f", c.digits, v[0])
	}
	m, sd := stat.MeanStdDev(v, nil)
	return fmt.Sprintf("%.*f ± %.*f", c.digits, m, c.digits, sd)
}

// difference is bold where its confidence interval does not hold 0.
func difference(c column, v []float64) string {
	switch len(v) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%+.*f", c.digits, v[0])
	}
	m, h := stat.Mean(v, nil), halfWidth(v)
	text := fmt.Sprintf("%+.*f ± %.*f", c.digits, m, c.digits, h)
	if math.Abs(m) > h {
		return "**" + text + "**"
	}
	return text
}

// plotPSNR draws, for each arm, the differences of the PSNR to the baseline: a dot for each seed, a line at their mean.
func plotPSNR(results [][]*Result, path string) error {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = "difference to the baseline of the same seed", "PSNR, dB"
	p.Add(plotter.NewGrid())
	p.Legend.Left = true
	var names []string
	for _, arm := range Arms()[1:] {
		names = append(names, arm.Name)
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(names))-0.5
	zero := plotter.NewFunction(func(float64) float64 { return 0 })
	zero.Color = color.Gray{128}
	p.Add(zero)
	for k, c := range columns()[2:] {
		if !strings.HasPrefix(c.name, "PSNR") {
			continue
		}
		var dots plotter.XYs
		for i := range names {
			x := float64(i) + 0.12*float64(k-1)
			v := values(c, results[i+1], results[0])
			for _, y := range v {
				dots = append(dots, plotter.XY{X: x, Y: y})
			}
			if len(v) == 0 {
				continue
			}
			bar, err := plotter.NewLine(plotter.XYs{{X: x - 0.1, Y: stat.Mean(v, nil)}, {X: x + 0.1, Y: stat.Mean(v, nil)}})
			if err != nil {
				return err
			}
			bar.Color = plotutil.Color(k)
			p.Add(bar)
		}
		if len(dots) == 0 {
			continue
		}
		scatter, err := plotter.NewScatter(dots)
		if err != nil {
			return err
		}
		scatter.GlyphStyle = draw.GlyphStyle{Color: plotutil.Color(k), Radius: vg.Points(2.5), Shape: draw.CircleGlyph{}}
		p.Add(scatter)
		p.Legend.Add(c.name, scatter)
	}
	p.Y.Min, p.Y.Max = p.Y.Min-0.05, p.Y.Max+0.05
	return savePlot(p, path)
}

// plotVelocity draws the velocity loss of each arm over t, as a share of the baseline's, on a scale of logarithms.
func plotVelocity(results [][]*Result, path string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "velocity loss, mean of the seeds", "t", "share of the baseline's"
	p.Add(plotter.NewGrid())
	p.Legend.Top = true
	p.Y.Scale = plot.LogScale{}
	var ticks plot.ConstantTicks
	for _, y := range []float64{0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 8} {
		ticks = append(ticks, plot.Tick{Value: y, Label: fmt.Sprint(y)})
	}
	p.Y.Tick.Marker = ticks
	for i, arm := range Arms() {
		if i == 0 {
			continue
		}
		var xy plotter.XYs
		for k, t := range MeasureTimes {
			at := column{of: func(m Measures) float64 { return math.Log(m.Velocity[k]) }}
			if v := values(at, results[i], results[0]); len(v) > 0 {
				xy = append(xy, plotter.XY{X: t, Y: math.Exp(stat.Mean(v, nil))})
			}
		}
		if len(xy) == 0 {
			continue
		}
		line, points, err := plotter.NewLinePoints(xy)
		if err != nil {
			return err
		}
		line.Color, points.Color, points.Shape = plotutil.Color(i), plotutil.Color(i), plotutil.Shape(i)
		p.Add(line, points)
		p.Legend.Add(arm.Name, line, points)
	}
	p.X.Min, p.X.Max = 0, 1.2 // room for the legend
	return savePlot(p, path)
}

// savePlot writes a picture of the kind that its name ends with, in one step.
func savePlot(p *plot.Plot, path string) error {
	w, err := p.WriterTo(7*vg.Inch, 3.5*vg.Inch, strings.TrimPrefix(filepath.Ext(path), "."))
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return err
	}
	return data.WriteFile(path, b.Bytes())
}
