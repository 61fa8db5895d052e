package train

import (
	"math"
	"testing"
)

func TestLearningRate(t *testing.T) {
	config := func(schedule string, coolDown int64) Config {
		return Config{Steps: 1000, WarmUp: 100, LR: 2, LRFloor: 0.1, Schedule: schedule, CoolDown: coolDown}
	}
	for _, c := range []struct {
		config Config
		step   int64
		want   float64
	}{
		{config("constant", 0), 50, 1},
		{config("constant", 0), 100, 2},
		{config("constant", 0), 1000, 2},
		{config("constant", 200), 800, 2},
		{config("constant", 200), 900, 1.1},
		{config("constant", 200), 1000, 0.2},
		{config("cosine", 0), 100, 2},
		{config("cosine", 0), 550, 1.1},
		{config("cosine", 0), 1000, 0.2},
	} {
		if got := c.config.learningRate(c.step); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("%s, cool-down %d, step %d: %g, want %g", c.config.Schedule, c.config.CoolDown, c.step, got, c.want)
		}
	}
}
