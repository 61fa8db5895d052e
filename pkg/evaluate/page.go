package evaluate

import (
	"cmp"
	_ "embed"
	"html/template"
	"io"
	"slices"

	"github.com/fluxir/fluxir/pkg/data"
)

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

const pagePicture = 384 // pixels, longer side

type pageRow struct {
	Name     string
	Pictures []pagePic
	Lines    []Line
	badness  float64
}

type pagePic struct {
	Source  template.URL
	Caption string
}

// WritePage writes one page without outside links: the summary, then input, result and reference of every pair, the worst by the first metric first, at most
// most of them.
func WritePage(w io.Writer, pairs []Pair, lines []Line, summary []Distribution, most int) error {
	if len(lines) == 0 {
		return nil
	}
	by := lines[0].Metric
	var rows []pageRow
	paths := map[string]Pair{}
	for _, p := range pairs {
		row := pageRow{Name: p.Name}
		for _, l := range lines {
			if l.Image != p.Name {
				continue
			}
			row.Lines = append(row.Lines, l)
			if l.Kind == KindResult && l.Metric == by {
				row.badness = -l.Value
				if lowerBetter(by) {
					row.badness = l.Value
				}
			}
		}
		if len(row.Lines) > 0 {
			rows = append(rows, row)
			paths[p.Name] = p
		}
	}
	slices.SortStableFunc(rows, func(a, b pageRow) int { return cmp.Compare(b.badness, a.badness) })
	rows = rows[:min(len(rows), most)]
	for i := range rows {
		p := paths[rows[i].Name]
		for _, f := range [][2]string{{"before", p.Input}, {"after", p.Result}, {"reference", p.Reference}} {
			if f[1] == "" {
				continue
			}
			m, err := data.Load(f[1])
			if err != nil {
				return err
			}
			source, err := data.DataURL(m, pagePicture)
			if err != nil {
				return err
			}
			rows[i].Pictures = append(rows[i].Pictures, pagePic{template.URL(source), f[0]})
		}
	}
	return pageTemplate.Execute(w, map[string]any{"Summary": summary, "By": by, "Rows": rows})
}
