package bindings

import "testing"

func TestPhiloxKnownAnswer(t *testing.T) {
	var words [4]uint32
	PhiloxWords(words[:], 0, 0, 0)
	if want := [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}; words != want {
		t.Fatalf("got %x want %x", words, want)
	}
}

func TestPhiloxNormalOffsets(t *testing.T) {
	whole := make([]float32, 40)
	PhiloxNormal(whole, 7, 3, 1<<34)
	for offset := range 9 {
		for n := range 9 {
			part := make([]float32, n+1)
			part[n] = -1
			PhiloxNormal(part[:n], 7, 3, 1<<34+uint64(offset))
			for i, x := range part[:n] {
				if x != whole[offset+i] {
					t.Fatalf("offset %d, element %d: got %v want %v", offset, i, x, whole[offset+i])
				}
			}
			if part[n] != -1 {
				t.Fatalf("offset %d, n %d: wrote past the end", offset, n)
			}
		}
	}
}
