// Package evaluate measures restoration on photographs that are degraded in known ways: the figures before and after, per image and in the mean.
package evaluate

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/fluxir/fluxir/pkg/data"
)

// Protocol is part of every table: figures of different protocols must not be compared.
const Protocol = "RGB, 8 bits, no border cut; PSNR over all channels; SSIM 11×11 Gaussian σ 1.5, mean of channels; GMSD and HaarPSI on luma"

// Scores of an image against the clean one.
type Scores struct {
	PSNR    float64 // dB
	SSIM    float64 // 0..1
	GMSD    float64 // 0 is best
	HaarPSI float64 // 0..1
}

// Row is one image under one degradation.
type Row struct {
	Image, Preset string
	Input, Output Scores
	Seconds       float64 // of the restoration
	LQ            float64 // dB between the input and the output degraded again; 0 where not asked for
}

// Restorer restores one picture; *restore.Restorer is one.
type Restorer func(ctx context.Context, degraded *data.Image) (*data.Image, error)

// Options of Run.
type Options struct {
	Crop    int      // side of the centre crop, a multiple of 8; 0 takes whole pictures
	Presets []string // of data.Draw; nil: data.EvalPresets
	Seed    uint64   // of the degradations' noise
	Save    string   // folder for clean, degraded and restored pictures as PNG; "" for none
	// LQConsistency degrades the output again, with the same noise, and compares with the input.
	LQConsistency bool
	Log           io.Writer
}

// Photos lists picture files: the arguments themselves, and what lies in those that are folders, sorted.
func Photos(args []string) ([]string, error) {
	var files []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, arg)
			continue
		}
		entries, err := os.ReadDir(arg)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if _, err := data.FormatOf(e.Name()); err == nil && !e.IsDir() {
				files = append(files, filepath.Join(arg, e.Name()))
			}
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no pictures in %s", strings.Join(args, ", "))
	}
	sort.Strings(files)
	return files, nil
}

// Run degrades, restores and scores every file under every preset.
func Run(ctx context.Context, restore Restorer, files []string, o Options) ([]Row, error) {
	if o.Presets == nil {
		o.Presets = data.EvalPresets
	}
	var rows []Row
	for i, file := range files {
		clean, err := data.Load(file)
		if err != nil {
			return nil, err
		}
		clean = centre(clean, o.Crop)
		for _, preset := range o.Presets {
			row, err := one(ctx, restore, clean, file, preset, uint64(i), o)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", file, preset, err)
			}
			rows = append(rows, row)
			if o.Log != nil {
				fmt.Fprintf(o.Log, "%-28s %-10s PSNR %.2f -> %.2f  SSIM %.4f -> %.4f  %.1f s\n", row.Image, preset, row.Input.PSNR, row.Output.PSNR,
					row.Input.SSIM, row.Output.SSIM, row.Seconds)
			}
		}
	}
	return rows, nil
}

func centre(m *data.Image, side int) *data.Image {
	m.Alpha = nil
	if side == 0 {
		return m
	}
	w, h := min(side, m.W), min(side, m.H)
	return m.Crop((m.W-w)/2/8*8, (m.H-h)/2/8*8, w, h)
}

func one(ctx context.Context, restore Restorer, clean *data.Image, file, preset string, index uint64, o Options) (Row, error) {
	row := Row{Image: filepath.Base(file), Preset: preset}
	params, err := data.Draw(preset, o.Seed, index, 0)
	if err != nil {
		return row, err
	}
	degraded, err := params.Apply(clean)
	if err != nil {
		return row, err
	}
	start := time.Now()
	restored, err := restore(ctx, degraded)
	if err != nil {
		return row, err
	}
	row.Seconds = time.Since(start).Seconds()
	restored = rounded(restored)
	if o.LQConsistency {
		again, err := params.Apply(restored)
		if err != nil {
			return row, err
		}
		if row.LQ, err = data.PSNR(again, degraded); err != nil {
			return row, err
		}
	}
	if row.Input, err = Score(degraded, clean); err != nil {
		return row, err
	}
	if row.Output, err = Score(restored, clean); err != nil || o.Save == "" {
		return row, err
	}
	stem := strings.TrimSuffix(row.Image, filepath.Ext(row.Image))
	for kind, m := range map[string]*data.Image{"clean": clean, "degraded": degraded, "restored": restored} {
		if err := save(filepath.Join(o.Save, kind, stem+"."+preset+".png"), m); err != nil {
			return row, err
		}
	}
	return row, nil
}

// rounded is what an 8-bit file would hold.
func rounded(m *data.Image) *data.Image {
	p := data.NewPhoto("", m)
	return p.Image()
}

func save(path string, m *data.Image) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return data.Save(path, m, data.SaveOptions{BitDepth: 8, StripMeta: true})
}

// Score compares an image with the clean one.
func Score(m, clean *data.Image) (s Scores, err error) {
	for _, f := range []struct {
		to *float64
		of func(a, b *data.Image) (float64, error)
	}{{&s.PSNR, data.PSNR}, {&s.SSIM, data.SSIM}, {&s.GMSD, data.GMSD}, {&s.HaarPSI, data.HaarPSI}} {
		if *f.to, err = f.of(m, clean); err != nil {
			return s, err
		}
	}
	return s, nil
}

// WriteCSV writes one line per row.
func WriteCSV(w io.Writer, rows []Row) error {
	c := csv.NewWriter(w)
	_ = c.Write(strings.Split("image,preset,psnr_in,psnr_out,ssim_in,ssim_out,gmsd_in,gmsd_out,haarpsi_in,haarpsi_out,seconds,lq_psnr", ","))
	for _, r := range rows {
		fields := []string{r.Image, r.Preset}
		for _, v := range []float64{r.Input.PSNR, r.Output.PSNR, r.Input.SSIM, r.Output.SSIM, r.Input.GMSD, r.Output.GMSD, r.Input.HaarPSI,
			r.Output.HaarPSI, r.Seconds, r.LQ} {
			fields = append(fields, strconv.FormatFloat(v, 'f', 5, 64))
		}
		_ = c.Write(fields)
	}
	c.Flush()
	return c.Error()
}

// Summary is the mean over the images of one degradation.
type Summary struct {
	Preset        string
	Images        int
	Input, Output Scores
	WorstGain     float64 // dB, of the image that gained least
	WorstImage    string
	Seconds       float64 // mean
	LQ            float64 // mean, dB; 0 where not asked for
}

// Summarise makes one Summary per preset, in the rows' order, and one called "mean" over them all.
func Summarise(rows []Row) []Summary {
	var order []string
	groups := map[string][]Row{}
	for _, r := range rows {
		if groups[r.Preset] == nil {
			order = append(order, r.Preset)
		}
		groups[r.Preset] = append(groups[r.Preset], r)
	}
	var out []Summary
	for _, preset := range order {
		out = append(out, summary(preset, groups[preset]))
	}
	return append(out, summary("mean", rows))
}

func summary(name string, rows []Row) Summary {
	s := Summary{Preset: name, Images: len(rows)}
	n := float64(len(rows))
	for i, r := range rows {
		s.Input.add(r.Input, 1/n)
		s.Output.add(r.Output, 1/n)
		s.Seconds += r.Seconds / n
		s.LQ += r.LQ / n
		if gain := r.Output.PSNR - r.Input.PSNR; i == 0 || gain < s.WorstGain {
			s.WorstGain, s.WorstImage = gain, r.Image
		}
	}
	return s
}

func (s *Scores) add(t Scores, weight float64) {
	s.PSNR += weight * t.PSNR
	s.SSIM += weight * t.SSIM
	s.GMSD += weight * t.GMSD
	s.HaarPSI += weight * t.HaarPSI
}

// Markdown is the table of README.
func Markdown(w io.Writer, summaries []Summary) {
	fmt.Fprintln(w, "| degradation | images | PSNR in → out (gain) | worst image | SSIM in → out (gain) | GMSD in → out | HaarPSI in → out | s/image |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|")
	for _, s := range summaries {
		fmt.Fprintf(w, "| %s | %d | %.2f → %.2f (**%+.2f dB**) | %+.2f (%s) | %.4f → %.4f (%+.4f) | %.4f → %.4f | %.4f → %.4f | %.2f |\n", s.Preset, s.Images,
			s.Input.PSNR, s.Output.PSNR, s.Output.PSNR-s.Input.PSNR, s.WorstGain, s.WorstImage, s.Input.SSIM, s.Output.SSIM,
			s.Output.SSIM-s.Input.SSIM, s.Input.GMSD, s.Output.GMSD, s.Input.HaarPSI, s.Output.HaarPSI, s.Seconds)
	}
	for _, s := range summaries {
		if s.LQ != 0 {
			fmt.Fprintf(w, "\nlq-consistency, %s: %.2f dB between the input and the output degraded again", s.Preset, s.LQ)
		}
	}
}
