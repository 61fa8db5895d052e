package main

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// launch is the command as n processes under mpirun, in a session of its own. It skips the test where there is no MPI.
func launch(t *testing.T, n string, args ...string) *exec.Cmd {
	t.Helper()
	plugin, err := filepath.Abs("../../build/libfluxir_mpi.so")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(plugin); err != nil {
		t.Skip("no libfluxir_mpi.so: `make mpi` builds it")
	}
	if _, err := exec.LookPath("mpirun"); err != nil {
		t.Skip("no mpirun")
	}
	c := exec.Command("mpirun", append([]string{"--bind-to", "none", "--oversubscribe", "-n", n, os.Args[0]}, args...)...)
	c.Env = append(os.Environ(), "FLUXIR_TEST_TRAIN=1", "FLUXIR_MPI="+plugin, "OMP_WAIT_POLICY=passive", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

// Two processes see the batches of one and get its losses but for the order of the sums, the same bits each time, and a state that one process goes on with.
func TestTwoProcesses(t *testing.T) {
	for name, write := range map[string]func(string) error{"nano": nano, "flux": flux} {
		t.Run(name, func(t *testing.T) {
			dir, args := prepare(t, write)
			args = append(args, "--steps", "8", "--set", "dropout=0.3")
			if name == "flux" {
				args = append(args, "--recompute")
			}
			one, two, again, resumed := filepath.Join(dir, "one"), filepath.Join(dir, "two"), filepath.Join(dir, "again"), filepath.Join(dir, "resumed")
			run := func(c *exec.Cmd) {
				if out, err := c.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			run(command(append(args, "--run", one)...))
			run(launch(t, "2", append(args, "--run", two)...))
			run(launch(t, "2", append(args, "--run", again)...))
			run(command(append(args, "--run", resumed, "--steps", "4")...))
			run(launch(t, "2", append(args, "--run", resumed)...))
			// One process sums each gradient over a batch of two items, two processes over one item each and then both: F32 sums in another order, whose rounding
			// (2^-24 a term) eight steps of Adam carry on.
			want, _ := losses(t, one)
			var lossApart, normApart float64
			for _, folder := range []string{two, resumed} {
				got, _ := losses(t, folder)
				if len(got) != 8 || len(want) != 8 {
					t.Fatalf("%d and %d records", len(want), len(got))
				}
				for i := range got {
					d := math.Abs(got[i].Loss/want[i].Loss - 1)
					if lossApart = max(lossApart, d); !(d < 1e-6) || got[i].Images != want[i].Images {
						t.Errorf("%s, step %d: loss %.9g and %d images, of one process %.9g and %d", filepath.Base(folder), i+1, got[i].Loss, got[i].Images, want[i].Loss, want[i].Images)
					}
					d = math.Abs(got[i].GradNorm/want[i].GradNorm - 1)
					if normApart = max(normApart, d); !(d < 1e-6) {
						t.Errorf("%s, step %d: gradient norm %.9g, of one process %.9g", filepath.Base(folder), i+1, got[i].GradNorm, want[i].GradNorm)
					}
				}
			}
			t.Logf("largest relative difference of a loss %.2g, of a gradient norm %.2g", lossApart, normApart)
			a, err := os.ReadFile(filepath.Join(two, "adapter.state.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(again, "adapter.state.safetensors")); err != nil || !bytes.Equal(a, b) {
				t.Errorf("two runs of two processes differ (%v)", err)
			}
		})
	}
}

// A process that dies ends the run with the last state intact.
func TestDeadProcess(t *testing.T) {
	dir, args := prepare(t, nano)
	run := filepath.Join(dir, "run")
	args = append(args, "--run", run, "--steps", "100000", "--sample-every", "100000", "--save-every", "5")
	c := launch(t, "2", args...)
	out := &bytes.Buffer{}
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	waitFor(t, run, 8)
	victim, other := child(t, c.Process.Pid, "1"), child(t, c.Process.Pid, "0")
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("mpirun ended well")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the run goes on without one of its processes")
	}
	for deadline := time.Now().Add(10 * time.Second); syscall.Kill(other, 0) == nil; time.Sleep(10 * time.Millisecond) { // mpirun may end before what it killed
		if time.Now().After(deadline) {
			t.Fatal("process 0 goes on without the other")
		}
	}
	records, _ := losses(t, run)
	steps := len(records)
	c = command(append(args, "--steps", "8", "--set", "log_every=1")...)
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "from step 5 of 8") && steps < 10 {
		t.Errorf("resume after %d steps: %v: %s", steps, err, out)
	}
}

// child is the process of mpirun's children that has the rank.
func child(t *testing.T, parent int, rank string) int {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range entries {
		env, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(env, []byte("\x00OMPI_COMM_WORLD_RANK="+rank+"\x00")) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no such process")
	return 0
}

// A request to stop that reaches one process ends all after the same step, saved.
func TestProcessesStopTogether(t *testing.T) {
	dir, args := prepare(t, nano)
	run := filepath.Join(dir, "run")
	c := launch(t, "2", append(args, "--run", run, "--steps", "100000", "--sample-every", "100000", "--save-every", "100000")...)
	out := &bytes.Buffer{}
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	waitFor(t, run, 3)
	if err := syscall.Kill(child(t, c.Process.Pid, "1"), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || !strings.Contains(out.String(), "resume with: mpirun -n 2 ") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(run, "adapter.state.safetensors")); err != nil {
		t.Error(err)
	}
}

// What a process refuses is said once in a line, by a run that ends.
func TestProcessesRefuse(t *testing.T) {
	dir, args := prepare(t, nano)
	out, err := launch(t, "2", append(args, "--run", filepath.Join(dir, "run"), "--batch", "3")...).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("batch: got 3, want a multiple of the 2 processes")) {
		t.Errorf("%v: %s", err, out)
	}
	c := command(append(args, "--run", filepath.Join(dir, "run"))...)
	c.Env = append(c.Env, "OMPI_COMM_WORLD_SIZE=2", "FLUXIR_MPI=/nowhere.so")
	if out, err := c.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("make mpi")) {
		t.Errorf("without the engine: %v: %s", err, out)
	}
}
