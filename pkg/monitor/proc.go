package monitor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is Linux's USER_HZ, the unit of times in /proc/self/stat.
const ticksPerSecond = 100

// proc is this process on the CPU.
type proc struct {
	root string
	say  func(string)
	at   time.Time
	cpu  float64 // seconds, at `at`
}

func openProc(root string, say func(string)) *proc {
	p := &proc{root: root, say: say, at: time.Now()}
	p.cpu, _ = p.cpuSeconds()
	return p
}

func (p *proc) energy() (float64, bool) { return 0, false }

func (p *proc) read() (values []Value) {
	add := func(name, unit string, value float64, ok bool) {
		if ok {
			values = append(values, Value{Name: name, Value: value, Unit: unit})
		} else {
			p.say(p.root + " does not tell " + name)
		}
	}
	rss, ok := p.rss()
	add("rss", "MB", rss, ok)
	now := time.Now()
	cpu, ok := p.cpuSeconds()
	add("cores", "", (cpu-p.cpu)/max(now.Sub(p.at).Seconds(), 1e-3), ok)
	p.cpu, p.at = cpu, now
	clock, ok := p.clock()
	add("clock", "MHz", clock, ok)
	return values
}

// rss is the resident memory, files mapped included.
func (p *proc) rss() (megabytes float64, ok bool) {
	for line := range strings.Lines(p.file("self/status")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib * 1024 / 1e6, err == nil
		}
	}
	return 0, false
}

// cpuSeconds is the time that all threads have run.
func (p *proc) cpuSeconds() (float64, bool) {
	_, rest, ok := strings.Cut(p.file("self/stat"), ") ") // behind the name, which may have spaces
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, false
	}
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	return (user + system) / ticksPerSecond, err1 == nil && err2 == nil
}

// clock is the mean of the cores' frequencies now.
func (p *proc) clock() (megahertz float64, ok bool) {
	n := 0.0
	for line := range strings.Lines(p.file("cpuinfo")) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "cpu MHz" {
			if v, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				megahertz, n = megahertz+v, n+1
			}
		}
	}
	return megahertz / max(n, 1), n > 0
}

func (p *proc) file(name string) string { return readFile(filepath.Join(p.root, name)) }

func readFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// freeHost is the memory that programs can still have: what the kernel estimates, and what is left of the control group's limit.
func (p *proc) freeHost() (bytes int64, ok bool) {
	for line := range strings.Lines(p.file("meminfo")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			bytes, ok = kib*1024, err == nil
		}
	}
	limit, err1 := strconv.ParseInt(strings.TrimSpace(readFile("/sys/fs/cgroup/memory.max")), 10, 64)
	used, err2 := strconv.ParseInt(strings.TrimSpace(readFile("/sys/fs/cgroup/memory.current")), 10, 64)
	if err1 == nil && err2 == nil && (!ok || limit-used < bytes) {
		bytes, ok = limit-used, true
	}
	return bytes, ok
}
