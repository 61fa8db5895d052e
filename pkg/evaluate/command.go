package evaluate

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/fluxir/fluxir/pkg/data"
)

// Command is a Restorer that calls another program as NAME ARG... IN.png OUT.png, 8 bits, for every picture. The program's start is part of its time.
func Command(command []string) Restorer {
	return func(ctx context.Context, degraded *data.Image) (*data.Image, error) {
		dir, err := os.MkdirTemp("", "fluxir-evaluate-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		in, out := filepath.Join(dir, "in.png"), filepath.Join(dir, "out.png")
		if err := save(in, degraded); err != nil {
			return nil, err
		}
		args := append(command[1:len(command):len(command)], in, out)
		if text, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", command[0], err, lastLine(string(text)))
		}
		restored, err := data.Load(out)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", command[0], err)
		}
		if restored.W != degraded.W || restored.H != degraded.H {
			return nil, fmt.Errorf("%s: made %dx%d pixels of %dx%d", command[0], restored.W, restored.H, degraded.W, degraded.H)
		}
		return restored, nil
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
