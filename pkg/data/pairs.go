package data

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Pair are two image files of one size: a clean picture and a degraded copy of it.
type Pair struct {
	ID           string // as messages name it
	HQ, LQ       string // paths
	HQSum, LQSum string // SHA-256 of the files, hexadecimal; "": unknown
}

// fluxgenConfig tells a folder that holds a set of package fluxgen.
const fluxgenConfig = "fluxgen.json"

// IsManifest tells whether path is what ReadPairs reads: a .csv or .jsonl file, or the folder of a fluxgen set.
func IsManifest(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".csv", ".jsonl":
		return true
	}
	_, err := os.Stat(filepath.Join(path, fluxgenConfig))
	return err == nil
}

// ReadPairs reads a manifest of pairs. A .csv file has a header that names its columns, a .jsonl file one object a line; lq and hq are paths, relative ones to
// the manifest's folder; id, hq_sha256 and lq_sha256 may be there, others are passed over. The manifest of a fluxgen set, or its folder, gives all degraded copies
// of the pictures that are kept.
func ReadPairs(path string) ([]Pair, error) {
	files, err := manifestFiles(path)
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	set := &fluxgenSet{hq: map[int]Pair{}, dropped: map[int]bool{}, lq: map[string]fluxgenLine{}}
	for _, file := range files {
		read := set.readLines
		if strings.EqualFold(filepath.Ext(file), ".csv") {
			read = readCSV
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		list, err := read(file, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, list...)
	}
	pairs = append(pairs, set.pairs()...)
	if len(pairs) == 0 {
		return nil, fmt.Errorf("%s: no pairs in this manifest", path)
	}
	return pairs, nil
}

// ManifestSum is the SHA-256 of a manifest, hexadecimal; of a set's folder that of its manifests, one after the other.
func ManifestSum(path string) (string, error) {
	files, err := manifestFiles(path)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// manifestFiles are path itself or the manifests of a set's folder.
func manifestFiles(path string) ([]string, error) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return []string{path}, err
	}
	return filepath.Glob(filepath.Join(escapeGlob(path), "manifest*.jsonl"))
}

func escapeGlob(path string) string {
	return strings.NewReplacer("[", "\\[", "*", "\\*", "?", "\\?", "\\", "\\\\").Replace(path)
}

// newPair is a line's pair with its paths resolved.
func newPair(file string, line int, id, hq, lq, hqSum, lqSum string) (Pair, error) {
	if hq == "" || lq == "" {
		return Pair{}, fmt.Errorf("%s:%d: want lq and hq, got lq %q, hq %q", file, line, lq, hq)
	}
	for _, sum := range []string{hqSum, lqSum} {
		if b, err := hex.DecodeString(sum); err != nil || (len(b) != 0 && len(b) != sha256.Size) {
			return Pair{}, fmt.Errorf("%s:%d: SHA-256 %q, want 64 hexadecimal digits", file, line, sum)
		}
	}
	if id == "" {
		id = "line " + strconv.Itoa(line)
	}
	at := func(path string) string {
		if filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(filepath.Dir(file), path)
	}
	return Pair{ID: id, HQ: at(hq), LQ: at(lq), HQSum: strings.ToLower(hqSum), LQSum: strings.ToLower(lqSum)}, nil
}

func readCSV(file string, r io.Reader) (pairs []Pair, err error) {
	c := csv.NewReader(r)
	head, err := c.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: no header: %w", file, err)
	}
	head[0] = strings.TrimPrefix(head[0], "\ufeff")
	column := func(name string) int { return slices.Index(head, name) }
	if column("lq") < 0 || column("hq") < 0 {
		return nil, fmt.Errorf("%s:1: header %q, want the columns lq and hq", file, strings.Join(head, ","))
	}
	for {
		row, err := c.Read()
		if errors.Is(err, io.EOF) {
			return pairs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err) // names the line
		}
		get := func(name string) string {
			if i := column(name); i >= 0 {
				return row[i]
			}
			return ""
		}
		line, _ := c.FieldPos(0)
		p, err := newPair(file, line, get("id"), get("hq"), get("lq"), get("hq_sha256"), get("lq_sha256"))
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
}

// fluxgenLine is a line of either kind of JSON manifest (docs/fluxgen.md).
type fluxgenLine struct {
	ID    string `json:"id"`
	HQ    string `json:"hq"`
	LQ    string `json:"lq"`
	HQSum string `json:"hq_sha256"`
	LQSum string `json:"lq_sha256"`

	Stage  string `json:"stage"`
	Index  int    `json:"index"`
	Copy   int    `json:"copy"`
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
	Kept   bool   `json:"kept"`
	Params struct {
		Preset string `json:"preset"`
	} `json:"params"`

	file string // the manifest
	line int
}

// fluxgenSet gathers the lines of a set: of one thing the last one counts.
type fluxgenSet struct {
	hq      map[int]Pair // without LQ
	dropped map[int]bool
	lq      map[string]fluxgenLine
}

// readLines reads a .jsonl file: pairs of its own, or a set's lines into s. The last line may be torn where it is a set's, which another process may be writing.
func (s *fluxgenSet) readLines(file string, r io.Reader) (pairs []Pair, err error) {
	lines := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		text, err := lines.ReadBytes('\n')
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			l := fluxgenLine{file: file, line: n}
			switch err := json.Unmarshal(text, &l); {
			case err != nil && end && len(s.hq) > 0:
			case err != nil:
				return nil, fmt.Errorf("%s:%d: %w", file, n, err)
			case l.Stage != "":
				if err := s.note(l); err != nil {
					return nil, err
				}
			default:
				p, err := newPair(file, n, l.ID, l.HQ, l.LQ, l.HQSum, l.LQSum)
				if err != nil {
					return nil, err
				}
				pairs = append(pairs, p)
			}
		}
		if end {
			return pairs, nil
		}
	}
}

func (s *fluxgenSet) note(l fluxgenLine) (err error) {
	switch l.Stage {
	case "generate":
		s.hq[l.Index], err = newPair(l.file, l.line, "-", l.File, l.File, l.SHA256, "")
	case "select":
		s.dropped[l.Index] = !l.Kept
	case "degrade":
		s.lq[fmt.Sprintf("%08d/%s/%08d", l.Index, l.Params.Preset, l.Copy)] = l
	}
	return err
}

// pairs are the degraded copies of the pictures that are kept, in the order of their index.
func (s *fluxgenSet) pairs() (list []Pair) {
	var keys []string
	for key, l := range s.lq {
		if _, ok := s.hq[l.Index]; ok && !s.dropped[l.Index] {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		l := s.lq[key]
		hq := s.hq[l.Index]
		p, err := newPair(l.file, l.line, fmt.Sprintf("%06d/%s/%d", l.Index, l.Params.Preset, l.Copy), hq.HQ, l.File, hq.HQSum, l.SHA256)
		p.HQ = hq.HQ
		if err == nil {
			list = append(list, p)
		}
	}
	return list
}

// SplitPairs holds out the pairs of every eighth clean picture, with all its copies; of fewer than eight pictures it returns all twice.
func SplitPairs(pairs []Pair) (train, held []Pair) {
	number := map[string]int{}
	for _, p := range pairs {
		if _, ok := number[p.HQ]; !ok {
			number[p.HQ] = len(number)
		}
	}
	if len(number) < 8 {
		return pairs, pairs
	}
	for _, p := range pairs {
		if number[p.HQ]%8 == 7 {
			held = append(held, p)
		} else {
			train = append(train, p)
		}
	}
	return train, held
}

// PairSet are pairs with a memory of which of them cannot be read. Its methods may be called from several goroutines.
type PairSet struct {
	pairs []Pair
	least int // pixels, the smallest side

	mu      sync.Mutex
	bad     map[int]bool
	pending []error // about those found since Skipped
	failed  error   // there are too many
}

// OpenPairs looks at the headers of all files. A pair that cannot be read, or whose pictures are smaller than least pixels, now or later, is skipped; more than
// MaxUnreadable of them are an error.
func OpenPairs(pairs []Pair, least int) (*PairSet, error) {
	s := &PairSet{pairs: pairs, least: least, bad: map[int]bool{}}
	found := make([]error, len(pairs))
	Parallel(len(pairs), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			if found[i] = checkHeader(pairs[i].HQ, least); found[i] == nil {
				found[i] = checkHeader(pairs[i].LQ, least)
			}
		}
	})
	for i, err := range found {
		if err == nil {
			continue
		}
		if err := s.skip(i, err); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// checkHeader reads the start of an image file.
func checkHeader(path string, least int) error {
	f, err := os.Open(path)
	if err != nil {
		return fileError(path, err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	head, err := r.Peek(sniffBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return fileError(path, err)
	}
	format, err := sniff(head)
	if err != nil {
		return fileError(path, err)
	}
	if format == FormatTIFF { // its decoder wants to seek
		return nil
	}
	cfg, err := codecs[format].config(r)
	if err != nil {
		return fileError(path, codecError(format, err, false))
	}
	return tooSmall(path, cfg.Width, cfg.Height, least)
}

func tooSmall(path string, w, h, least int) error {
	if w < least || h < least {
		return fmt.Errorf("%s: %dx%d pixels, want %dx%d or more", path, w, h, least, least)
	}
	return nil
}

// skip notes that a pair cannot be read, once.
func (s *PairSet) skip(i int, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad[i] {
		return s.failed
	}
	s.bad[i] = true
	s.pending = append(s.pending, fmt.Errorf("pair %s: %w", s.pairs[i].ID, err))
	if float64(len(s.bad)) > MaxUnreadable*float64(len(s.pairs)) {
		s.failed = fmt.Errorf("%w: %d of %d pairs, the last: %w", ErrUnreadable, len(s.bad), len(s.pairs), s.pending[len(s.pending)-1])
	}
	return s.failed
}

// Skipped returns what was found unreadable since the last call, and how many pairs are in all.
func (s *PairSet) Skipped() (found []error, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, s.pending = s.pending, nil
	return found, len(s.bad)
}

// Len is the number of pairs, unreadable ones too.
func (s *PairSet) Len() int { return len(s.pairs) }

// Load decodes the pair at place at of an order of all pairs, or the next one in it that can be read.
func (s *PairSet) Load(order []int, at int) (hq, lq *Image, err error) {
	for k := range order {
		i := order[(at+k)%len(order)]
		s.mu.Lock()
		bad, failed := s.bad[i], s.failed
		s.mu.Unlock()
		if failed != nil {
			return nil, nil, failed
		}
		if bad {
			continue
		}
		if hq, lq, err = s.pairs[i].load(s.least); err == nil {
			return hq, lq, nil
		}
		if err := s.skip(i, err); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("%w: all %d pairs", ErrUnreadable, len(s.pairs))
}

// load decodes a pair and checks it.
func (p Pair) load(least int) (hq, lq *Image, err error) {
	if hq, err = loadSum(p.HQ, p.HQSum); err != nil {
		return nil, nil, err
	}
	if lq, err = loadSum(p.LQ, p.LQSum); err != nil {
		return nil, nil, err
	}
	if hq.W != lq.W || hq.H != lq.H {
		return nil, nil, fmt.Errorf("%s: %dx%d pixels, want the %dx%d of %s", p.LQ, lq.W, lq.H, hq.W, hq.H, p.HQ)
	}
	return hq, lq, tooSmall(p.HQ, hq.W, hq.H, least)
}

// loadSum decodes a file whose SHA-256 is known, or "".
func loadSum(path, sum string) (*Image, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	if got := sha256.Sum256(b); sum != "" && hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s: its SHA-256 is %x, the manifest says %s", path, got, sum)
	}
	m, err := Decode(bytes.NewReader(b))
	if err != nil {
		return nil, fileError(path, err)
	}
	return m, nil
}
