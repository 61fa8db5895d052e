package train

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
)

// Cost is what a run, a stage of it, or a reference has taken. Work that was lost when a run was killed and done again counts twice, as it was paid twice.
type Cost struct {
	Name   string  `json:"name" toml:"name"`
	Source string  `json:"source,omitempty" toml:"source"` // of a reference: who states it
	Device string  `json:"device,omitempty" toml:"device"`
	Images float64 `json:"images" toml:"images"`             // pairs seen
	Hours  float64 `json:"device_hours" toml:"device_hours"` // devices times hours
	KWh    float64 `json:"kwh" toml:"kwh"`                   // 0: unknown
	PFLOP  float64 `json:"pflop" toml:"pflop"`               // of matrix products, convolutions and attention; 10^15
	Gain   float64 `json:"psnr_gain" toml:"psnr_gain"`       // best mean of a validation, dB; 0: none
}

// Costs adds up the records of a run by stage, in order.
func Costs(records []Record) []Cost {
	var list []Cost
	at := map[string]int{}
	for _, r := range records {
		i, ok := at[r.Stage]
		if !ok {
			i = len(list)
			at[r.Stage], list = i, append(list, Cost{Name: r.Stage})
		}
		list[i].add(r)
	}
	return list
}

func (c *Cost) add(r Record) {
	if r.Device != "" && !strings.Contains(c.Device, r.Device) {
		c.Device = strings.TrimPrefix(c.Device+", "+r.Device, ", ")
	}
	c.Images += float64(r.Images)
	c.Hours += r.Seconds / 3600 * float64(max(r.Devices, 1))
	c.KWh += r.KWh
	c.PFLOP += r.GFLOPs * r.Seconds / 1e6
	if r.Gains != nil && (c.Gain == 0 || mean(r.Gains) > c.Gain) {
		c.Gain = mean(r.Gains)
	}
}

// RunCost is the whole of a run folder.
func RunCost(run string) (Cost, error) {
	records, err := ReadMetrics(run)
	if err != nil {
		return Cost{}, err
	}
	c := Cost{Name: run}
	for _, r := range records {
		c.add(r)
	}
	return c, nil
}

// ReadReference reads a stated cost from a TOML file with Cost's keys.
func ReadReference(path string) (Cost, error) {
	var c Cost
	text, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := decodeTOML(path, text, &c); err != nil {
		return c, err
	}
	if c.Name == "" || c.Source == "" {
		return c, fmt.Errorf("%w: %s: name, source: want both: a figure has an origin", ErrConfig, path)
	}
	return c, nil
}

// PrintCosts writes a table; with a reference, its line and the others' shares of it.
func PrintCosts(w io.Writer, costs []Cost, reference *Cost) {
	title, rule := "| run | images | device-hours | kWh | PFLOP | GFLOP/s | best gain, dB | device |", "|---|---|---|---|---|---|---|---|"
	if reference != nil {
		title, rule = title+" of the reference's hours, kWh, PFLOP, images |", rule+"---|"
		costs = append(costs, *reference)
	}
	fmt.Fprintf(w, "%s\n%s\n", title, rule)
	for _, c := range costs {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |", c.Name, known(c.Images, "%.0f"), known(c.Hours, "%.2f"), known(c.KWh, "%.3f"), known(c.PFLOP, "%.3f"),
			known(c.PFLOP*1e6/(c.Hours*3600), "%.0f"), known(c.Gain, "%+.2f"), c.Device)
		if reference != nil {
			r := *reference
			fmt.Fprintf(w, " %s, %s, %s, %s |", known(100*c.Hours/r.Hours, "%.3g %%"), known(100*c.KWh/r.KWh, "%.3g %%"), known(100*c.PFLOP/r.PFLOP, "%.3g %%"),
				known(100*c.Images/r.Images, "%.3g %%"))
		}
		fmt.Fprintln(w)
	}
	if reference != nil {
		fmt.Fprintf(w, "\n%s: %s\n", reference.Name, reference.Source)
	}
}

// known prints a figure, or ? where it is not known.
func known(v float64, format string) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return "?"
	}
	return fmt.Sprintf(format, v)
}

// writeLedger stores the costs by stage.
func (l *Logger) writeLedger() error {
	text, err := json.MarshalIndent(Costs(l.records), "", "  ")
	if err != nil {
		return err
	}
	return data.WriteFile(filepath.Join(l.run, "ledger.json"), append(text, '\n'))
}
