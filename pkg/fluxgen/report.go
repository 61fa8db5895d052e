package fluxgen

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
)

//go:embed report.html
var reportHTML string

var reportPage = template.Must(template.New("report").Parse(reportHTML))

const (
	sheetPictures = 24  // shown of each kind
	thumbnail     = 160 // pixels, longer side
)

type fact struct {
	Name  string
	Value any
}

type picture struct {
	Source  template.URL
	Caption string
}

type report struct {
	Facts         []fact
	Histograms    []histogram
	Protocols     []string
	Reasons       []fact
	Kept, Dropped []picture
	Pairs         []picture
	Degradations  []Statistics
}

// Report writes report.html into the set's folder and returns its path. It works on unfinished sets too.
func (s *Set) Report() (string, error) {
	c, err := s.Config()
	if err != nil {
		return "", err
	}
	indexes, kept := s.indexes(), s.kept()
	r := report{Facts: []fact{
		{"pictures", len(indexes)}, {"kept", len(kept)}, {"degraded copies", len(s.degraded)}, {"size", fmt.Sprintf("%d×%d", c.Width, c.Height)},
		{"steps", c.Steps}, {"guidance", c.Guidance}, {"prior", c.Prior}, {"seed", c.Seed}, {"batch", c.Batch}, {"precision", c.DType}, {"model", c.Model},
	}}
	values := map[string][]float64{}
	for _, i := range indexes {
		line, ok := s.scored[i]
		if !ok {
			continue
		}
		for name, v := range line.Scores {
			values[name] = append(values[name], v)
		}
		values["flat"], values["sharp"] = append(values["flat"], line.Flat), append(values["sharp"], line.Sharp)
		r.Protocols = append(r.Protocols, line.Protocols...)
	}
	for _, key := range s.copies() {
		if line := s.degraded[key]; line.PSNR != 0 {
			name := "PSNR of the copies by " + key.preset
			values[name] = append(values[name], line.PSNR)
		}
	}
	slices.Sort(r.Protocols)
	r.Protocols = slices.Compact(r.Protocols)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		r.Histograms = append(r.Histograms, newHistogram(name, values[name]))
	}
	if err := s.sheets(&r, indexes, kept); err != nil {
		return "", err
	}
	r.Degradations = s.Statistics()
	var page bytes.Buffer
	if err := reportPage.Execute(&page, r); err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, "report.html")
	return path, data.WriteFile(path, page.Bytes())
}

// sheets fills in the pictures and the reasons.
func (s *Set) sheets(r *report, indexes, kept []int) error {
	reasons := map[string]int{}
	for _, i := range indexes {
		line, decided := s.selected[i]
		if !decided || line.Kept {
			continue
		}
		reason, _, _ := strings.Cut(line.Why, ":")
		if strings.HasPrefix(reason, "duplicate of") {
			reason = "duplicate"
		} else if word, _, ok := strings.Cut(reason, " "); ok && s.scored[i].Scores[word] != 0 {
			reason = word
		}
		reasons[reason]++
		if len(r.Dropped) < sheetPictures {
			p, err := s.thumbnail(s.generated[i].File, s.generated[i].SHA256, fmt.Sprintf("%d, %s", i, line.Why))
			if err != nil {
				return err
			}
			r.Dropped = append(r.Dropped, p)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		r.Reasons = append(r.Reasons, fact{reason, reasons[reason]})
	}
	for _, i := range kept[:min(len(kept), sheetPictures)] {
		p, err := s.thumbnail(s.generated[i].File, s.generated[i].SHA256, fmt.Sprintf("%d%s", i, scoresText(s.scored[i].Scores)))
		if err != nil {
			return err
		}
		r.Kept = append(r.Kept, p)
	}
	for _, key := range s.copies() {
		if len(r.Pairs) >= 2*sheetPictures {
			break
		}
		g, d := s.generated[key.index], s.degraded[key]
		clean, err := s.thumbnail(g.File, g.SHA256, fmt.Sprint(key.index))
		if err != nil {
			return err
		}
		bad, err := s.thumbnail(d.File, d.SHA256, fmt.Sprintf("%d, copy %d, %s", key.index, key.copy, key.preset))
		if err != nil {
			return err
		}
		r.Pairs = append(r.Pairs, clean, bad)
	}
	return nil
}

func scoresText(scores map[string]float64) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(scores)) {
		fmt.Fprintf(&b, ", %s %.2f", name, scores[name])
	}
	return b.String()
}

// copies are the degraded copies by preset, index and copy.
func (s *Set) copies() []degradedKey {
	return slices.SortedFunc(maps.Keys(s.degraded), func(a, b degradedKey) int {
		if c := strings.Compare(a.preset, b.preset); c != 0 {
			return c
		}
		if a.index != b.index {
			return a.index - b.index
		}
		return a.copy - b.copy
	})
}

// thumbnail loads a picture of the set, small, into the page.
func (s *Set) thumbnail(name, sum, caption string) (picture, error) {
	m, err := s.picture(name, sum)
	if err != nil {
		return picture{}, err
	}
	source, err := data.DataURL(m, thumbnail)
	return picture{template.URL(source), caption}, err
}

type histogram struct {
	Name                    string
	Count                   int
	Lowest, Median, Highest float64
	Bars                    []bar
}

type bar struct {
	X, Y, Width, Height float64
	Title               string
}

// newHistogram lays out bars in a box of 320 × 150.
func newHistogram(name string, values []float64) histogram {
	const bins, width, top, height = 24, 318, 20, 112
	sorted := slices.Sorted(slices.Values(values))
	h := histogram{Name: name, Count: len(values), Lowest: sorted[0], Median: sorted[len(sorted)/2], Highest: sorted[len(sorted)-1]}
	var counts [bins]int
	span := h.Highest - h.Lowest
	for _, v := range values {
		k := 0
		if span > 0 {
			k = min(int(float64(bins)*(v-h.Lowest)/span), bins-1)
		}
		counts[k]++
	}
	most := slices.Max(counts[:])
	for k, n := range counts {
		tall := height * float64(n) / float64(most)
		h.Bars = append(h.Bars, bar{
			X: width / bins * float64(k), Y: top + height - tall, Width: width/bins - 1, Height: math.Round(100*tall) / 100,
			Title: fmt.Sprintf("%.4g to %.4g: %d", h.Lowest+span*float64(k)/bins, h.Lowest+span*float64(k+1)/bins, n),
		})
	}
	return h
}

// Statistics are the draws of one preset: how often each stage occurred and the range of its numbers.
type Statistics struct {
	Preset string
	Copies int
	Rows   []StatisticsRow
}

// StatisticsRow is one number of one stage.
type StatisticsRow struct {
	Stage                 string
	Count                 int     // of copies with the stage
	Chance                float64 // of a copy
	Value                 string  // what the range is of; "" for none
	Lowest, Mean, Highest float64
}

// Statistics gathers the degradations of the set by preset.
func (s *Set) Statistics() []Statistics {
	byPreset := map[string][]data.Params{}
	for _, key := range s.copies() {
		byPreset[key.preset] = append(byPreset[key.preset], s.degraded[key].Params)
	}
	var out []Statistics
	for _, preset := range slices.Sorted(maps.Keys(byPreset)) {
		out = append(out, newStatistics(preset, byPreset[preset]))
	}
	return out
}

// newStatistics names a stage by its operation, its occurrence in the chain and, where it has one, its kind: "1 blur iso".
func newStatistics(preset string, draws []data.Params) Statistics {
	out := Statistics{Preset: preset, Copies: len(draws)}
	rows := map[string]*StatisticsRow{}
	add := func(stage, value string, v float64) {
		row := rows[stage+value]
		if row == nil {
			row = &StatisticsRow{Stage: stage, Value: value, Lowest: v, Highest: v}
			rows[stage+value] = row
		}
		row.Count++
		row.Lowest, row.Highest = min(row.Lowest, v), max(row.Highest, v)
		row.Mean += v
	}
	for _, p := range draws {
		seen := map[string]int{}
		for _, st := range p.Stages {
			seen[st.Op]++
			name := fmt.Sprintf("%d %s", seen[st.Op], st.Op)
			switch st.Op {
			case data.OpBlur:
				name += " " + st.Kernel.Kind
				add(name, "size", float64(st.Kernel.Size))
				if st.Kernel.Kind == data.KernelSinc {
					add(name, "cutoff", st.Kernel.Omega)
				} else {
					add(name, "sigma", st.Kernel.SigmaX)
				}
			case data.OpResize:
				add(name+" "+st.Mode, "scale", st.Scale)
			case data.OpGauss:
				add(name, "sigma", st.Sigma)
			case data.OpPoisson:
				add(name, "strength", st.Strength)
			case data.OpJPEG:
				add(name, "quality", float64(st.Quality))
			default:
				add(name, "", 0)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		row := rows[key]
		row.Mean /= float64(row.Count)
		row.Chance = float64(row.Count) / float64(len(draws))
		out.Rows = append(out.Rows, *row)
	}
	return out
}
