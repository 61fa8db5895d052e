package optest

import (
	"os"
	"path/filepath"
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
		if !full[symbol] || !empty[symbol] {
			t.Errorf("%s: has a case: %v, has a case of size zero: %v", symbol, full[symbol], empty[symbol])
		}
	}
}

// TestRows: an op is four files of one basename: csrc/x.cpp, bindings/x.go, x.go here, pkg/tensor/x.go. Two are not on
// the tape: rng makes its numbers on the host, adamw follows it.
func TestRows(t *testing.T) {
	sources, err := filepath.Glob("../../csrc/*.cpp")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{"rng": true}
	for _, op := range Ops {
		rows[op.Name] = true
	}
	if len(sources) != len(rows) {
		t.Errorf("%d files in csrc, %d ops", len(sources), len(rows))
	}
	for _, source := range sources {
		name := strings.TrimSuffix(filepath.Base(source), ".cpp")
		files := []string{"../" + name + ".go"}
		if name != "rng" {
			files = append(files, name+".go")
		}
		if name != "rng" && name != "adamw" {
			files = append(files, "../../pkg/tensor/"+name+".go")
		}
		for _, file := range files {
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s has no %s", source, file)
			}
		}
		if !rows[name] {
			t.Errorf("%s is not in Ops", source)
		}
	}
}
