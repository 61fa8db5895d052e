// Package iqa scores images: NIQE and BRISQUE here, the metrics of pkg/data against a reference, and with every score the protocol that it was
// taken under. Scores of different protocols cannot be compared, and Comparable refuses to.
package iqa

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
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

// Metric is one way to score an image.
type Metric struct {
	Name        string
	Reference   bool // compares with a reference
	LowerBetter bool
	Side        int // smallest side of an image, after crop and border
	weights     []byte
	channels    bool // follows Setup.Channel
	full, fullY func(m, reference *data.Image) (float64, error)
	noReference func(m *data.Image) (float64, error)
}

// Metrics are all there are.
var Metrics = []*Metric{
	{Name: "psnr", Reference: true, Side: 1, channels: true, full: data.PSNR, fullY: data.PSNRY},
	{Name: "ssim", Reference: true, Side: 11, channels: true, full: data.SSIM, fullY: data.SSIMY},
	{Name: "ms-ssim", Reference: true, Side: data.MSSSIMSide, channels: true, full: data.MSSSIM, fullY: data.MSSSIMY},
	{Name: "gmsd", Reference: true, LowerBetter: true, Side: 2, full: data.GMSD},
	{Name: "haarpsi", Reference: true, Side: 16, full: data.HaarPSI},
	{Name: "niqe", LowerBetter: true, Side: niqeBlock, noReference: NIQE, weights: niqeJSON},
	{Name: "brisque", LowerBetter: true, Side: brisqueSide, noReference: BRISQUE, weights: brisqueGzip},
}

// Parse returns the metrics of a list of names. "all" stands for all, "fr" for those with a reference, "nr" for those without.
func Parse(names []string) ([]*Metric, error) {
	var out []*Metric
	for _, name := range names {
		found := false
		for _, m := range Metrics {
			if name == m.Name || name == "all" || name == "fr" && m.Reference || name == "nr" && !m.Reference {
				found = true
				if !slices.Contains(out, m) {
					out = append(out, m)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown metric %q, want all, fr, nr, %s", name, strings.Join(Names(), ", "))
		}
	}
	return out, nil
}

// Names lists the metrics.
func Names() (names []string) {
	for _, m := range Metrics {
		names = append(names, m.Name)
	}
	return names
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
	if m.Reference && s.Resize != "" {
		resize = s.Resize
	}
	if m.weights != nil {
		sum := sha256.Sum256(m.weights)
		weights = hex.EncodeToString(sum[:6])
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
