package photos

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// copyLicence keeps the package's own licence statement, which names the authors, in DIR/licences.
func copyLicence(o Options, pkg, tree string) error {
	short := filepath.Base(tree)
	for _, p := range []string{"usr/share/doc/" + pkg + "/copyright", "package/LICENSE.md", "package/LICENSE", "package/package.json"} {
		text, err := os.ReadFile(filepath.Join(tree, p))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(o.Dir, "licences", short+".txt"), text, 0o644)
	}
	return fmt.Errorf("%s: no licence statement found in the package", pkg)
}

// copyReadmes keeps the README files of a resource container: they name author, source and licence of each photograph.
func copyReadmes(o Options, s source, inside map[string][]byte) error {
	for name, text := range inside {
		if path.Base(name) != "README" {
			continue
		}
		out := s.pkg + "_" + strings.TrimSuffix(path.Base(s.archive), ".rcc") + ".txt"
		if err := os.WriteFile(filepath.Join(o.Dir, "licences", out), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeCredits lists every photograph in use: split, name, licence, package and file.
func writeCredits(o Options, items []item) error {
	var lines []string
	for _, it := range items {
		if it.drop == "" {
			file := it.file
			if it.archive != "" {
				file = it.archive + "!" + it.file
			}
			lines = append(lines, strings.Join([]string{it.split, it.name(), it.licence, it.pkg, file}, "\t"))
		}
	}
	slices.Sort(lines)
	head := "# Photographs in this folder: split, name, licence (PD = public domain), package, file in the package.\n" +
		"# Authors are named in licences/PACKAGE.txt. Photographs marked halve in the table were shrunk by two.\n"
	return os.WriteFile(filepath.Join(o.Dir, "CREDITS"), []byte(head+strings.Join(lines, "\n")+"\n"), 0o644)
}
