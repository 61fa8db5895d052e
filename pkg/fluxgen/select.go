package fluxgen

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/fluxir/fluxir/pkg/iqa"
)

// The ways to combine scores.
const (
	CombineQuantile = "quantile" // a picture is dropped where any score is among the worst 1-Keep of that score
	CombineRank     = "rank"     // the worst 1-Keep by the mean of the ranks are dropped
)

// Selection says which pictures are kept.
type Selection struct {
	Metrics   []string // blind metrics of pkg/iqa; nil: niqe and brisque, or brisque alone for pictures too small for niqe
	Networks  iqa.Networks
	Combine   string  // "": quantile
	Keep      float64 // part kept by the scores, 0..1; the paper's is 0.95
	Duplicate int     // pictures whose hashes differ in at most so many bits of 64 are duplicates, all but the first dropped; negative: none are
	MaxFlat   float64 // largest part of flat blocks
	MinSharp  float64 // smallest standard deviation of the Laplacian
}

// DefaultSelection is the paper's quantile with mild cuts.
func DefaultSelection() Selection {
	return Selection{Combine: CombineQuantile, Keep: 0.95, Duplicate: 4, MaxFlat: 0.8, MinSharp: 2}
}

// Validate reports the first field that is out of range.
func (o Selection) Validate() error {
	switch {
	case !(o.Keep > 0 && o.Keep <= 1):
		return fmt.Errorf("keep: got %v, want above 0, at most 1", o.Keep)
	case o.Combine != CombineQuantile && o.Combine != CombineRank:
		return fmt.Errorf("combine: got %q, want %s or %s", o.Combine, CombineQuantile, CombineRank)
	case o.Duplicate > 64:
		return fmt.Errorf("duplicate: got %d bits, want at most 64", o.Duplicate)
	case !(o.MaxFlat >= 0) || !(o.MinSharp >= 0):
		return fmt.Errorf("max-flat %v, min-sharp %v: want no negative number", o.MaxFlat, o.MinSharp)
	}
	for _, name := range o.Metrics {
		if d, ok := iqa.Find(name); !ok || d.Reference {
			return fmt.Errorf("metrics: %q is unknown or needs a reference picture, want some of %s", name, strings.Join(iqa.Names(true), ", "))
		}
	}
	return nil
}

// Select scores the pictures that have no scores yet and decides about all of them. Nothing is deleted: a decision is a line of the manifest.
func (s *Set) Select(ctx context.Context, o Selection, progress Progress) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if s.shard.Count > 0 {
		return fmt.Errorf("select looks at the whole set: run it without a shard when all are done")
	}
	indexes := s.indexes()
	if len(indexes) == 0 {
		return fmt.Errorf("%s: no generated pictures to select from", s.dir)
	}
	metrics, err := iqa.Parse(o.Metrics, o.Networks)
	if err != nil {
		return err
	}
	defer iqa.Close(metrics)
	for done, i := range indexes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.score(i, metrics); err != nil {
			return err
		}
		progress.tell(stageScore, done+1, len(indexes))
	}
	for i, why := range s.decide(indexes, o) {
		line := Selected{Stage: stageSelect, Index: indexes[i], Kept: why == "", Why: why}
		if s.selected[indexes[i]] != line {
			if err := s.append(line); err != nil {
				return err
			}
		}
	}
	return nil
}

// indexes are those of the generated pictures, in order.
func (s *Set) indexes() (out []int) {
	for i := range s.generated {
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

// score measures picture i unless it has been, under the same protocols; without metrics, by those that suit its size.
func (s *Set) score(i int, metrics []*iqa.Metric) error {
	old, ok := s.scored[i]
	if ok && metrics == nil {
		return nil
	}
	g := s.generated[i]
	img, err := s.picture(g.File, g.SHA256)
	if err != nil {
		return err
	}
	if metrics == nil {
		names := []string{"niqe", "brisque"}
		if iqa.NIQEBlocks(img.W, img.H) < 2 {
			names = names[1:]
		}
		if metrics, err = iqa.Parse(names, iqa.Networks{}); err != nil {
			return err
		}
	}
	line := Scored{Stage: stageScore, Index: i, Scores: map[string]float64{}, Flat: flatness(img), Sharp: sharpness(img)}
	line.Hash = fmt.Sprintf("%016x", perceptualHash(img))
	for _, m := range metrics {
		line.Protocols = append(line.Protocols, m.Protocol(iqa.Setup{}))
	}
	if ok && slices.Equal(old.Protocols, line.Protocols) {
		return nil
	}
	for _, m := range metrics {
		v, err := m.Score(img, nil, iqa.Setup{})
		if err == nil && (math.IsNaN(v) || math.IsInf(v, 0)) {
			err = fmt.Errorf("%s: %v", m.Name, v)
		}
		if err != nil {
			if line.Failed == nil {
				line.Failed = map[string]string{}
			}
			line.Failed[m.Name] = err.Error()
			continue
		}
		line.Scores[m.Name] = v
	}
	return s.append(line)
}

// decide says of every picture why it is dropped, or "": first what cannot be scored, flat and blurred pictures, then duplicates, then the scores of the rest.
func (s *Set) decide(indexes []int, o Selection) []string {
	why := make([]string, len(indexes))
	var hashes []uint64
	var first []int // with those hashes
	for k, i := range indexes {
		line := s.scored[i]
		switch {
		case len(line.Failed) > 0:
			name := slices.Sorted(maps.Keys(line.Failed))[0]
			why[k] = "no score: " + line.Failed[name]
		case line.Flat > o.MaxFlat:
			why[k] = fmt.Sprintf("flat: %.3f of the blocks, more than %g", line.Flat, o.MaxFlat)
		case line.Sharp < o.MinSharp:
			why[k] = fmt.Sprintf("blurred: sharpness %.3f, less than %g", line.Sharp, o.MinSharp)
		default:
			hash, err := strconv.ParseUint(line.Hash, 16, 64)
			if err != nil {
				why[k] = fmt.Sprintf("no score: perceptual hash %q", line.Hash)
				continue
			}
			like := slices.IndexFunc(hashes, func(h uint64) bool { return bits.OnesCount64(h^hash) <= o.Duplicate })
			if like >= 0 {
				why[k] = fmt.Sprintf("duplicate of %d", first[like])
				continue
			}
			hashes, first = append(hashes, hash), append(first, i)
		}
	}
	s.cut(indexes, why, o)
	return why
}

// cut drops the worst of the pictures that are still in.
func (s *Set) cut(indexes []int, why []string, o Selection) {
	var rest []int // positions in indexes
	for k := range indexes {
		if why[k] == "" {
			rest = append(rest, k)
		}
	}
	drop := int(float64(len(rest)) * (1 - o.Keep) * (1 + 1e-12)) // 0.05 times 20 is one
	if len(rest) == 0 || drop == 0 {
		return
	}
	rank := make(map[int]float64, len(rest))
	for _, m := range iqa.Known() {
		if _, ok := s.scored[indexes[rest[0]]].Scores[m.Name]; !ok {
			continue
		}
		badness := func(k int) float64 {
			v := s.scored[indexes[k]].Scores[m.Name]
			if !m.LowerBetter {
				v = -v
			}
			return v
		}
		worst := slices.Clone(rest)
		slices.SortFunc(worst, func(a, b int) int { return cmp.Or(cmp.Compare(badness(b), badness(a)), cmp.Compare(a, b)) })
		for place, k := range worst {
			rank[k] += float64(place)
			if o.Combine == CombineQuantile && place < drop && why[k] == "" {
				why[k] = fmt.Sprintf("%s %.4f: among the worst %d of %d", m.Name, s.scored[indexes[k]].Scores[m.Name], drop, len(rest))
			}
		}
	}
	if o.Combine == CombineRank {
		slices.SortFunc(rest, func(a, b int) int { return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(a, b)) })
		for place, k := range rest[:drop] {
			why[k] = fmt.Sprintf("mean rank: place %d of the worst %d of %d", place+1, drop, len(rest))
		}
	}
}

// kept are the pictures of the latest selection, in order.
func (s *Set) kept() (out []int) {
	for _, i := range s.indexes() {
		if s.selected[i].Kept {
			out = append(out, i)
		}
	}
	return out
}
