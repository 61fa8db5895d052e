package optest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestCoverage: every op of FX_OP_LIST has a case with elements and one without, every backward op is tied to its forward op, and no two
// cases of an op have one name.
func TestCoverage(t *testing.T) {
	source, err := os.ReadFile("../../csrc/core/backend.h")
	if err != nil {
		t.Fatal(err)
	}
	full, empty, names := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, op := range Ops {
		for _, c := range op.Cases() {
			if name := c.Op + "/" + c.String(); names[name] {
				t.Errorf("two cases are called %s: give one a Note", name)
			} else {
				names[name] = true
			}
			if c.Empty() {
				empty[c.Op] = true
			} else {
				full[c.Op] = true
			}
			if strings.HasSuffix(c.Op, "_backward") && c.Forward == nil {
				t.Errorf("%s %s: Forward is not set", c.Op, &c)
			}
		}
	}
	symbols := regexp.MustCompile(`OP\((\w+)\)`).FindAllStringSubmatch(string(source), -1)
	if len(symbols) < 40 {
		t.Fatalf("found only %d ops in backend.h", len(symbols))
	}
	for _, match := range symbols {
		symbol := match[1]
		if symbol == "OP" || symbol == "FX_OP_POINTER" {
			continue
		}
		if !full[symbol] || !empty[symbol] {
			t.Errorf("%s: has a case: %v, has a case of size zero: %v", symbol, full[symbol], empty[symbol])
		}
	}
}
