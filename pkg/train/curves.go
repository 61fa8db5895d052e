package train

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// ReadMetrics reads the records of a run folder, in the order they were written. Lines that a killed run left torn are passed over.
func ReadMetrics(run string) ([]Record, error) {
	f, err := os.Open(filepath.Join(run, metricsFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var records []Record
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r Record
		if json.Unmarshal(lines.Bytes(), &r) == nil {
			records = append(records, r)
		}
	}
	return records, lines.Err()
}

// PlotCurves draws the loss and the validation gains of one stage over the images seen in it, as two SVG files: out + "-loss.svg" and out + "-gain.svg".
func PlotCurves(records []Record, stage, out string) error {
	var loss plotter.XYs
	gains := map[string]plotter.XYs{}
	images, smooth := 0.0, 0.0
	for _, r := range records {
		if r.Stage != stage {
			continue
		}
		images += float64(r.Images)
		for i, g := range r.Gains {
			gains[r.kind(i)] = append(gains[r.kind(i)], plotter.XY{X: images / 1000, Y: g})
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
	if len(gains) == 0 {
		return nil
	}
	return drawLines(out+"-gain.svg", stage+": validation", "PSNR gain over the input, dB", gains)
}

func drawLines(path, title, y string, lines map[string]plotter.XYs) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "thousand images", y
	p.Add(plotter.NewGrid())
	p.Legend.Top = true
	p.Legend.Left = true
	i := 0
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		line, err := plotter.NewLine(lines[name])
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
