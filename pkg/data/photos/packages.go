package photos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// fetchPackage makes sure that the package's files lie under cache/NAME and returns that folder. A tree is moved into place only when
// it is whole, so an interrupted run starts this package again and a finished one is never fetched twice.
func fetchPackage(ctx context.Context, cache, kind, pkg string) (string, error) {
	dir := filepath.Join(cache, strings.NewReplacer("@", "", "/", "-").Replace(pkg))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "fetch-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return "", err
	}
	if kind == kindNpm {
		if err := command(ctx, tmp, "npm", "pack", "--silent", pkg); err != nil {
			return "", err
		}
	} else if err := command(ctx, tmp, "apt-get", "download", pkg); err != nil {
		return "", fmt.Errorf("%w (is the package list up to date? try apt-get update)", err)
	}
	archives, err := filepath.Glob(filepath.Join(tmp, "*.*"))
	if err != nil || len(archives) != 1 {
		return "", fmt.Errorf("%s: download left %d files, want 1", pkg, len(archives))
	}
	if kind == kindNpm {
		err = command(ctx, tmp, "tar", "-xzf", archives[0], "-C", tree)
	} else {
		err = command(ctx, tmp, "dpkg", "-x", archives[0], tree)
	}
	if err != nil {
		return "", err
	}
	return dir, os.Rename(tree, dir)
}

// command runs a program in dir. Its error names the program, its arguments and the last line that it wrote.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lines[len(lines)-1])
}
