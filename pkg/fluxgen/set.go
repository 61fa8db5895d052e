// Package fluxgen makes a restoration data set out of a text-to-image model (spec §6): pictures from no prompt, the better ones selected by their
// scores, degraded copies of those, and a manifest that says how each came about.
//
// A set is a folder:
//
//	fluxgen.json              what the pictures depend on (Sampling)
//	manifest.jsonl            one line a picture and stage, only ever appended to; manifest.I-of-N.jsonl of shards
//	hq/000000.png             generated pictures, by index
//	lq/PRESET/000000_0.png    degraded copies, by index and copy
//	report.html
package fluxgen

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
)

const (
	configName   = "fluxgen.json"
	manifestName = "manifest.jsonl"
	lockName     = ".lock"
)

// Shard is part Index of Count of a set's work, 0 <= Index < Count. The zero value is all of it.
type Shard struct{ Index, Count int }

// ParseShard reads "i/n", counting from 0; "" is the zero Shard.
func ParseShard(text string) (Shard, error) {
	var s Shard
	if text == "" {
		return s, nil
	}
	if n, err := fmt.Sscanf(text, "%d/%d", &s.Index, &s.Count); n != 2 || err != nil || fmt.Sprintf("%d/%d", s.Index, s.Count) != text ||
		s.Count < 1 || s.Index < 0 || s.Index >= s.Count {
		return s, fmt.Errorf("shard: got %q, want i/n with 0 <= i < n", text)
	}
	return s, nil
}

// has says whether group number g of the work is this shard's.
func (s Shard) has(g int) bool { return s.Count == 0 || g%s.Count == s.Index }

func (s Shard) manifest() string {
	if s.Count == 0 {
		return manifestName
	}
	return fmt.Sprintf("manifest.%d-of-%d.jsonl", s.Index, s.Count)
}

// Set is an open set. Only one process at a time may have a whole set open, or each of its shards.
type Set struct {
	dir      string
	shard    Shard
	manifest *os.File
	locks    []*os.File

	generated map[int]Generated
	scored    map[int]Scored
	selected  map[int]Selected
	degraded  map[degradedKey]Degraded
}

type degradedKey struct {
	preset      string
	index, copy int
}

// Open opens or makes the set in a folder, for one shard or for all of it, and reads its manifests. A torn last line, left by a process that was killed,
// is cut off. Another process in the way is an error.
func Open(dir string, shard Shard) (*Set, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	s := &Set{dir: dir, shard: shard, generated: map[int]Generated{}, scored: map[int]Scored{}, selected: map[int]Selected{}, degraded: map[degradedKey]Degraded{}}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Set) open() error {
	if err := s.lock(lockName, s.shard.Count > 0); err != nil {
		return err
	}
	own := filepath.Join(s.dir, s.shard.manifest())
	if s.shard.Count > 0 {
		if err := s.lock(lockName+"."+s.shard.manifest(), false); err != nil {
			return err
		}
	}
	if s.shard.Count == 0 {
		s.sweep()
	}
	f, err := os.OpenFile(own, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	s.manifest = f
	if err := cutTorn(f); err != nil {
		return fmt.Errorf("%s: %w", own, err)
	}
	return s.read()
}

// sweep removes what killed processes were just writing; no other process is at work.
func (s *Set) sweep() {
	for _, folder := range []string{".", "hq", "lq/*"} {
		stale, _ := filepath.Glob(filepath.Join(escapeGlob(s.dir), folder, ".fluxir-*.tmp"))
		for _, path := range stale {
			os.Remove(path)
		}
	}
}

// ReadSet reads a set without opening it for work: for reports. Lines that a running process is just writing are left out.
func ReadSet(dir string) (*Set, error) {
	if _, err := os.Stat(filepath.Join(dir, configName)); err != nil {
		return nil, fmt.Errorf("%s: no set (%s is missing)", dir, configName)
	}
	s := &Set{dir: dir, generated: map[int]Generated{}, scored: map[int]Scored{}, selected: map[int]Selected{}, degraded: map[degradedKey]Degraded{}}
	return s, s.read()
}

func (s *Set) lock(name string, shared bool) error {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	s.locks = append(s.locks, f)
	if err := lockFile(f, shared); err != nil {
		return fmt.Errorf("%s: another process works on this set; wait for it, or give every process a shard of its own (--shard i/n): %w", s.dir, err)
	}
	return nil
}

// Close releases the set.
func (s *Set) Close() error {
	var err error
	if s.manifest != nil {
		err = s.manifest.Close()
	}
	for _, f := range s.locks {
		f.Close()
	}
	return err
}

// Configure fixes what the set's pictures depend on, at the first call, and compares later.
func (s *Set) Configure(c Sampling) error {
	path := filepath.Join(s.dir, configName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = json.MarshalIndent(c, "", "  "); err == nil {
			err = data.WriteFile(path, append(text, '\n'))
		}
		return err
	}
	if err != nil {
		return err
	}
	var old, now map[string]any
	if err := json.Unmarshal(text, &old); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if text, err = json.Marshal(c); err != nil {
		return err
	}
	if err := json.Unmarshal(text, &now); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if fmt.Sprint(old[key]) != fmt.Sprint(now[key]) {
			return fmt.Errorf("%s: the set was begun with %s %v, asked for is %v; use another folder", path, key, old[key], now[key])
		}
	}
	return nil
}

// Config reads what the set was begun with.
func (s *Set) Config() (c Sampling, err error) {
	path := filepath.Join(s.dir, configName)
	text, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// savePicture writes a picture as 8-bit PNG and returns the file's SHA-256.
func (s *Set) savePicture(name string, m *data.Image) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return "", err
	}
	if err := data.Save(path, m, data.SaveOptions{BitDepth: 8, StripMeta: true}); err != nil {
		return "", err
	}
	return hashFile(path)
}

// picture loads a file of the set and makes sure that it is what the manifest says.
func (s *Set) picture(name, sum string) (*data.Image, error) {
	path := filepath.Join(s.dir, name)
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%s: the manifest names a file outside of the set: %q", s.dir, name)
	}
	got, err := hashFile(path)
	if err != nil {
		return nil, err
	}
	if got != sum {
		return nil, fmt.Errorf("%s: not the file that the manifest describes (its SHA-256 begins with %s, not %s)", path, got[:12], short(sum))
	}
	return data.Load(path)
}

func short(sum string) string { return sum[:min(12, len(sum))] }

func (s *Set) exists(name string) bool {
	info, err := os.Stat(filepath.Join(s.dir, name))
	return err == nil && info.Size() > 0
}

// manifests are the paths of the set's manifests, the whole set's last, so that decisions taken there count.
func (s *Set) manifests() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(s.dir), "manifest.*-of-*.jsonl"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	if whole := filepath.Join(s.dir, manifestName); fileExists(whole) {
		paths = append(paths, whole)
	}
	return paths, nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Summary says in one line how far the set is.
func (s *Set) Summary() string {
	return fmt.Sprintf("%s: %d pictures, %d kept, %d degraded copies", s.dir, len(s.generated), len(s.kept()), len(s.degraded))
}
