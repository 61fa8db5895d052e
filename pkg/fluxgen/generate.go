package fluxgen

import (
	"context"
	"fmt"

	"github.com/fluxir/fluxir/pkg/data"
)

// Progress is told after every picture how many of a stage are done, of how many. Pictures that were there already count in neither.
type Progress func(stage string, done, total int)

func (p Progress) tell(stage string, done, total int) {
	if p != nil {
		p(stage, done, total)
	}
}

// Generate makes the pictures 0..count-1 of the set, or those of its shard, which gets whole batches, and passes over those that are there.
func (s *Set) Generate(ctx context.Context, g Generator, c Sampling, count int, progress Progress) error {
	missing := map[int][]int{} // by batch
	total := 0
	for i := range count {
		if line, ok := s.generated[i]; s.shard.has(i/c.Batch) && !(ok && s.exists(line.File)) {
			missing[i/c.Batch] = append(missing[i/c.Batch], i)
			total++
		}
	}
	done := 0
	progress.tell(stageGenerate, done, total)
	for batch := range (count + c.Batch - 1) / c.Batch {
		if len(missing[batch]) == 0 {
			continue
		}
		first := batch * c.Batch
		images, err := g.Generate(ctx, first, min(c.Batch, count-first))
		if err != nil {
			return err
		}
		for _, i := range missing[batch] {
			line := Generated{
				Stage: stageGenerate, Index: i, File: fmt.Sprintf("hq/%06d.png", i), Seed: fmt.Sprintf("%016x", data.Mix(c.Seed, uint64(i))),
				Steps: c.Steps, Model: c.Model,
			}
			if line.SHA256, err = s.savePicture(line.File, images[i-first]); err != nil {
				return err
			}
			if s.generated[i] != line {
				if err := s.append(line); err != nil {
					return err
				}
			}
			done++
			progress.tell(stageGenerate, done, total)
		}
	}
	return nil
}
