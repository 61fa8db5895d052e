package train

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/fluxir/fluxir/pkg/data"
)

// ReadMetrics reads the records of a run folder, in the order they were written. A last line that a killed run left torn is passed over.
func ReadMetrics(run string) ([]Record, error) {
	path := filepath.Join(run, metricsFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var records []Record
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			if !lines.Scan() {
				break
			}
			return nil, fmt.Errorf("%s: line %d: %w", path, len(records)+1, err)
		}
		records = append(records, r)
	}
	return records, lines.Err()
}

// Costs prints what each stage took: images seen, hours of the machine, GFLOP/s in the mean.
func Costs(w io.Writer, records []Record) {
	type cost struct{ images, seconds, gflop float64 }
	costs, order := map[string]*cost{}, []string{}
	for _, r := range records {
		c := costs[r.Stage]
		if c == nil {
			c = &cost{}
			costs[r.Stage], order = c, append(order, r.Stage)
		}
		c.images += float64(r.Images)
		c.seconds += r.Seconds
		c.gflop += r.GFLOPs * r.Seconds
	}
	fmt.Fprintln(w, "| stage | images | hours | PFLOP | GFLOP/s |")
	fmt.Fprintln(w, "|---|---|---|---|---|")
	for _, stage := range order {
		c := costs[stage]
		fmt.Fprintf(w, "| %s | %.0f | %.2f | %.2f | %.0f |\n", stage, c.images, c.seconds/3600, c.gflop/1e6, c.gflop/max(c.seconds, 1e-9))
	}
}

// PlotCurves draws the loss and the validation gains of one stage over the images seen in it, as two SVG files: out + "-loss.svg" and out + "-gain.svg".
func PlotCurves(records []Record, stage, out string) error {
	var loss plotter.XYs
	gains := make([]plotter.XYs, len(data.EvalPresets))
	images, smooth := 0.0, 0.0
	for _, r := range records {
		if r.Stage != stage {
			continue
		}
		images += float64(r.Images)
		for i, g := range r.Gains {
			gains[i] = append(gains[i], plotter.XY{X: images / 1000, Y: g})
		}
		if r.Gains != nil {
			continue
		}
		if smooth == 0 {
			smooth = r.Loss
		}
		smooth += 0.05 * (r.Loss - smooth) // single batches are noisy
		loss = append(loss, plotter.XY{X: images / 1000, Y: smooth})
	}
	if len(loss) == 0 {
		return fmt.Errorf("curves: no records of stage %q", stage)
	}
	if err := drawLines(out+"-loss.svg", stage+": loss", "loss, smoothed", map[string]plotter.XYs{"": loss}); err != nil {
		return err
	}
	named := map[string]plotter.XYs{}
	for i, xy := range gains {
		if len(xy) > 0 {
			named[data.EvalPresets[i]] = xy
		}
	}
	if len(named) == 0 {
		return nil
	}
	return drawLines(out+"-gain.svg", stage+": validation", "PSNR gain over the input, dB", named)
}

func drawLines(path, title, y string, lines map[string]plotter.XYs) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "thousand images", y
	p.Add(plotter.NewGrid())
	p.Legend.Top = true
	p.Legend.Left = true
	i := 0
	for _, name := range append([]string{""}, data.EvalPresets...) {
		xy := lines[name]
		if xy == nil {
			continue
		}
		line, err := plotter.NewLine(xy)
		if err != nil {
			return err
		}
		line.Color = plotutil.Color(i)
		i++
		p.Add(line)
		if name != "" {
			p.Legend.Add(name, line)
		}
	}
	return p.Save(6*vg.Inch, 3.5*vg.Inch, path)
}
