// Package iqa scores images: NIQE and BRISQUE here, the metrics of pkg/data against a reference, the networks of the folder below, and with every score
// the protocol that it was taken under. Scores of different protocols cannot be compared, and Comparable refuses to.
package iqa

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
	"github.com/fluxir/fluxir/pkg/iqa/network"
)

// Setup says how images are prepared before they are scored.
type Setup struct {
	Channel string // rgb or y (Matlab's rgb2ycbcr), of PSNR, SSIM and MS-SSIM; "" = rgb. The other metrics have luma of their own
	Crop    int    // side of the centre crop in pixels; 0 = whole images
	Border  int    // pixels cut from each side, after the crop
	Resize  string // kernel (data.ParseKernel) that brings a result to its reference's size; "" = different sizes are an error
}

// Validate reports the first field that is out of range.
func (s Setup) Validate() error {
	switch {
	case s.Channel != "" && s.Channel != "rgb" && s.Channel != "y":
		return fmt.Errorf("channel: got %q, want rgb or y", s.Channel)
	case s.Crop < 0 || s.Border < 0:
		return fmt.Errorf("crop %d, border %d: want no negative number", s.Crop, s.Border)
	case s.Resize != "":
		_, err := data.ParseKernel(s.Resize)
		return err
	}
	return nil
}

// Description is what is known of a metric before it is asked for.
type Description struct {
	Name        string
	Reference   bool // compares with a reference
	LowerBetter bool
	Side        int // smallest side of an image, after crop and border
}

// Metric is one way to score an image.
type Metric struct {
	Description
	weights     string // the first 12 digits of the SHA-256 of its weights, "" of a formula
	channels    bool   // follows Setup.Channel
	full, fullY func(m, reference *data.Image) (float64, error)
	noReference func(m *data.Image) (float64, error)
	close       func()
}

// metrics are those without weights to fetch.
var metrics = []*Metric{
	{Description: Description{Name: "psnr", Reference: true, Side: 1}, channels: true, full: data.PSNR, fullY: data.PSNRY},
	{Description: Description{Name: "ssim", Reference: true, Side: 11}, channels: true, full: data.SSIM, fullY: data.SSIMY},
	{Description: Description{Name: "ms-ssim", Reference: true, Side: data.MSSSIMSide}, channels: true, full: data.MSSSIM, fullY: data.MSSSIMY},
	{Description: Description{Name: "gmsd", Reference: true, LowerBetter: true, Side: 2}, full: data.GMSD},
	{Description: Description{Name: "haarpsi", Reference: true, Side: 16}, full: data.HaarPSI},
	{Description: Description{Name: "niqe", LowerBetter: true, Side: niqeBlock}, noReference: NIQE, weights: hash(niqeJSON)},
	{Description: Description{Name: "brisque", LowerBetter: true, Side: brisqueSide}, noReference: BRISQUE, weights: hash(brisqueGzip)},
}

func hash(weights []byte) string {
	sum := sha256.Sum256(weights)
	return hex.EncodeToString(sum[:6])
}

// Known describes all metrics, networks last.
func Known() (all []Description) {
	for _, m := range metrics {
		all = append(all, m.Description)
	}
	for _, k := range network.Kinds {
		all = append(all, Description{k.Name, k.Reference, k.LowerBetter, k.Side})
	}
	return all
}

// Names lists the metrics, or those without a reference.
func Names(blind bool) (names []string) {
	for _, d := range Known() {
		if !blind || !d.Reference {
			names = append(names, d.Name)
		}
	}
	return names
}

// Find describes the metric of a name; ok says whether there is one.
func Find(name string) (d Description, ok bool) {
	all := Known()
	i := slices.IndexFunc(all, func(d Description) bool { return d.Name == name })
	if i < 0 {
		return d, false
	}
	return all[i], true
}

// Networks says where the networks' weights lie and what runs them.
type Networks struct {
	Folder  string // NAME.safetensors of every network that there are weights for
	Device  string // cpu, cuda, or auto: cuda where there is one; "" is auto
	Threads int    // of the CPU, 0 = all cores
}

// Missing are the networks that there are no weights for.
func (n Networks) Missing() (names []string) {
	for _, k := range network.Kinds {
		if _, err := os.Stat(k.Path(n.Folder)); err != nil {
			names = append(names, k.Name)
		}
	}
	return names
}

// Parse returns the metrics of a list of names. "all" stands for all, "fr" for those with a reference, "nr" for those without; networks without weights
// are left out of these three, and an error by name.
func Parse(names []string, n Networks) ([]*Metric, error) {
	missing := n.Missing()
	var wanted []string
	for _, name := range names {
		_, one := Find(name)
		for _, d := range Known() {
			group := name == "all" || name == "fr" && d.Reference || name == "nr" && !d.Reference
			if (name == d.Name || group && !slices.Contains(missing, d.Name)) && !slices.Contains(wanted, d.Name) {
				wanted = append(wanted, d.Name)
			}
		}
		if !one && name != "all" && name != "fr" && name != "nr" {
			return nil, fmt.Errorf("unknown metric %q, want all, fr, nr, %s", name, strings.Join(Names(false), ", "))
		}
	}
	var out []*Metric
	for _, name := range wanted {
		if i := slices.IndexFunc(metrics, func(m *Metric) bool { return m.Name == name }); i >= 0 {
			out = append(out, metrics[i])
			continue
		}
		m, err := n.metric(name)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// metric is a network, which is loaded when it is first used.
func (n Networks) metric(name string) (*Metric, error) {
	k := &network.Kinds[slices.IndexFunc(network.Kinds, func(k network.Kind) bool { return k.Name == name })]
	weights, err := k.Hash(n.Folder)
	if err != nil {
		return nil, err
	}
	var loaded *network.Network
	score := func(m, reference *data.Image) (v float64, err error) {
		if loaded == nil {
			if loaded, err = k.Open(n.Folder, n.Device, n.Threads); err != nil {
				return 0, err
			}
		}
		return loaded.Score(m, reference)
	}
	d, _ := Find(name)
	return &Metric{Description: d, weights: weights, full: score, noReference: func(m *data.Image) (float64, error) { return score(m, nil) }, close: func() {
		if loaded != nil {
			loaded.Close()
			loaded = nil
		}
	}}, nil
}

// Close frees what the metrics have loaded.
func Close(metrics []*Metric) {
	for _, m := range metrics {
		if m.close != nil {
			m.close()
		}
	}
}

// Score scores an image, rounded to 8 bits as a file holds it, against its reference where the metric has one.
func (m *Metric) Score(img, reference *data.Image, s Setup) (float64, error) {
	if !m.Reference {
		img, err := s.prepare(img)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", m.Name, err)
		}
		return m.noReference(img)
	}
	if img.W != reference.W || img.H != reference.H {
		if s.Resize == "" {
			return 0, fmt.Errorf("%s: image of %dx%d pixels, reference of %dx%d; name a kernel to resize with", m.Name, img.W, img.H, reference.W, reference.H)
		}
		kernel, err := data.ParseKernel(s.Resize)
		if err != nil {
			return 0, err
		}
		img = data.NewPhoto("", data.Resize(img, reference.W, reference.H, kernel)).Image()
	}
	img, err := s.prepare(img)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", m.Name, err)
	}
	if reference, err = s.prepare(reference); err != nil {
		return 0, fmt.Errorf("%s: reference: %w", m.Name, err)
	}
	if m.channels && s.Channel == "y" {
		return m.fullY(img, reference)
	}
	return m.full(img, reference)
}

// prepare cuts crop and border.
func (s Setup) prepare(m *data.Image) (*data.Image, error) {
	w, h := m.W, m.H
	if s.Crop > 0 {
		w, h = min(w, s.Crop), min(h, s.Crop)
	}
	x, y := (m.W-w)/2, (m.H-h)/2
	if w <= 2*s.Border || h <= 2*s.Border {
		return nil, fmt.Errorf("nothing is left of %dx%d pixels after a border of %d", w, h, s.Border)
	}
	return m.Crop(x+s.Border, y+s.Border, w-2*s.Border, h-2*s.Border), nil
}

// Protocol is everything a score depends on besides the images, as one line: "psnr crop=0 border=4 channel=y resize=none weights=none".
func (m *Metric) Protocol(s Setup) string {
	channel, resize, weights := "luma", "none", "none"
	if m.channels {
		channel = "rgb"
		if s.Channel != "" {
			channel = s.Channel
		}
	}
	if m.close != nil { // networks see colours
		channel = "rgb"
	}
	if m.Reference && s.Resize != "" {
		resize = s.Resize
	}
	if m.weights != "" {
		weights = m.weights
	}
	return fmt.Sprintf("%s crop=%d border=%d channel=%s resize=%s weights=%s", m.Name, s.Crop, s.Border, channel, resize, weights)
}

// Comparable says why scores under two protocols must not be compared, or nil.
func Comparable(a, b string) error {
	if a != b {
		return fmt.Errorf("protocols differ, scores cannot be compared: %q and %q", a, b)
	}
	return nil
}
