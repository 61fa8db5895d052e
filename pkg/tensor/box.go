package tensor

// box is a rectangular part of a storage: [low, low+size) in each dimension.
type box struct {
	rank      int
	low, size [maxRank]int
}

const maxRank = 5

func fullBox(shape []int) box {
	b := box{rank: len(shape)}
	copy(b.size[:], shape)
	return b
}

func (b box) equal(c box) bool { return b == c }

func (b box) empty() bool {
	for i := 0; i < b.rank; i++ {
		if b.size[i] <= 0 {
			return true
		}
	}
	return false
}

func (b box) intersect(c box) box {
	for i := 0; i < b.rank; i++ {
		low := max(b.low[i], c.low[i])
		b.size[i] = min(b.low[i]+b.size[i], c.low[i]+c.size[i]) - low
		b.low[i] = low
	}
	return b
}

// minus is b without c, as disjoint boxes: at most two per dimension.
func (b box) minus(c box) []box {
	in := b.intersect(c)
	if in.empty() {
		return []box{b}
	}
	var parts []box
	for i := 0; i < b.rank; i++ {
		before, after := b, b
		before.size[i] = in.low[i] - b.low[i]
		after.low[i] = in.low[i] + in.size[i]
		after.size[i] = b.low[i] + b.size[i] - after.low[i]
		for _, p := range []box{before, after} {
			if !p.empty() {
				parts = append(parts, p)
			}
		}
		b.low[i], b.size[i] = in.low[i], in.size[i]
	}
	return parts
}

// uncovered is what is left of b outside the written boxes.
func (b box) uncovered(written []box) []box {
	rest := []box{b}
	for _, w := range written {
		var next []box
		for _, r := range rest {
			next = append(next, r.minus(w)...)
		}
		rest = next
	}
	return rest
}

func (b box) overlapsAny(written []box) bool {
	for _, w := range written {
		if !b.intersect(w).empty() {
			return true
		}
	}
	return false
}
