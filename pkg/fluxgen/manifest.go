package fluxgen

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fluxir/fluxir/pkg/data"
)

// The stages of a manifest's lines.
const (
	stageGenerate = "generate"
	stageScore    = "score"
	stageSelect   = "select"
	stageDegrade  = "degrade"
)

// Generated is the line of a generated picture.
type Generated struct {
	Stage  string `json:"stage"`
	Index  int    `json:"index"`
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
	Seed   string `json:"seed"` // of its noise, 64 bits in hexadecimal
	Steps  int    `json:"steps"`
	Model  string `json:"model"` // SHA-256
}

// Scored is the line of a picture's measurements.
type Scored struct {
	Stage     string             `json:"stage"`
	Index     int                `json:"index"`
	Scores    map[string]float64 `json:"scores"`
	Protocols []string           `json:"protocols"`        // of the scores, iqa.Metric.Protocol
	Failed    map[string]string  `json:"failed,omitempty"` // metrics that cannot score the picture, and why
	Hash      string             `json:"hash"`             // perceptual, 64 bits in hexadecimal
	Flat      float64            `json:"flat"`             // part of 8x8 blocks without contrast
	Sharp     float64            `json:"sharp"`            // standard deviation of the Laplacian, 0..255 scale
}

// Selected is the line of a decision; the last one of a picture counts.
type Selected struct {
	Stage string `json:"stage"`
	Index int    `json:"index"`
	Kept  bool   `json:"kept"`
	Why   string `json:"why,omitempty"`
}

// Degraded is the line of a degraded copy.
type Degraded struct {
	Stage  string      `json:"stage"`
	Index  int         `json:"index"`
	Copy   int         `json:"copy"`
	File   string      `json:"file"`
	SHA256 string      `json:"sha256"`
	Seed   uint64      `json:"seed"`           // of the draw
	PSNR   float64     `json:"psnr,omitempty"` // dB between the copy and its picture; left out where they are equal
	Params data.Params `json:"params"`
}

// append writes one line with one call, so that a process that dies leaves at most a torn last line.
func (s *Set) append(line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	if _, err := s.manifest.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("%w; what the manifest says so far stays valid, run again to go on", err)
	}
	s.note(line)
	return nil
}

// note takes a line into the set's state.
func (s *Set) note(line any) {
	switch l := line.(type) {
	case Generated:
		s.generated[l.Index] = l
	case Scored:
		s.scored[l.Index] = l
	case Selected:
		s.selected[l.Index] = l
	case Degraded:
		s.degraded[degradedKey{l.Params.Preset, l.Index, l.Copy}] = l
	}
}

// cutTorn cuts off what follows the last line's end.
func cutTorn(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	block := make([]byte, 1<<16)
	for end := size; end > 0; {
		start := max(0, end-int64(len(block)))
		if _, err := f.ReadAt(block[:end-start], start); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(block[:end-start], '\n'); i >= 0 {
			return truncate(f, start+int64(i)+1, size)
		}
		end = start
	}
	return truncate(f, 0, size)
}

func truncate(f *os.File, to, size int64) error {
	if to == size {
		return nil
	}
	return f.Truncate(to)
}

// read reads all manifests of the set.
func (s *Set) read() error {
	paths, err := s.manifests()
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := s.readManifest(path); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) readManifest(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for number := 1; ; number++ {
		text, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // without its end a line is not there yet
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		line, err := parseLine(text)
		if err != nil {
			return fmt.Errorf("%s: line %d: %w", path, number, err)
		}
		s.note(line)
	}
}

// parseLine reads one line of a manifest.
func parseLine(text []byte) (any, error) {
	var head struct {
		Stage string `json:"stage"`
		Index int    `json:"index"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, err
	}
	if head.Index < 0 {
		return nil, fmt.Errorf("index %d", head.Index)
	}
	switch head.Stage {
	case stageGenerate:
		return decode[Generated](text)
	case stageScore:
		return decode[Scored](text)
	case stageSelect:
		return decode[Selected](text)
	case stageDegrade:
		return decode[Degraded](text)
	}
	return nil, fmt.Errorf("unknown stage %q", head.Stage)
}

func decode[T any](text []byte) (any, error) {
	var line T
	err := json.Unmarshal(text, &line)
	return line, err
}
