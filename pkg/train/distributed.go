package train

import (
	"bytes"
	"fmt"
	"os"

	"github.com/fluxir/fluxir/bindings"
	"github.com/fluxir/fluxir/pkg/tensor"
)

// Processes are those that train one run together, started by `mpirun -n N train …`: each takes its share of every batch, the gradients are summed, all make the
// same optimizer step. Process 0 validates and writes the folder. The nil Processes is one process alone.
type Processes struct{ comm *bindings.Comm }

// launched tells whether a launcher has started this process as one of several. Open MPI, MPICH and Slurm's PMI say so in the environment.
func launched() bool {
	for _, name := range []string{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"} {
		if n := os.Getenv(name); n != "" && (name == "PMIX_RANK" || n != "1") {
			return true
		}
	}
	return false
}

// OpenProcesses joins the processes that a launcher has started with this one; nil where there is none. MPI is loaded here and only then.
func OpenProcesses() (*Processes, error) {
	if !launched() {
		return nil, nil
	}
	comm, err := bindings.OpenComm()
	if err != nil {
		return nil, fmt.Errorf("several processes: MPI: %w: `make mpi` builds it", err)
	}
	return &Processes{comm}, nil
}

// Rank is 0 for the process that writes.
func (p *Processes) Rank() int {
	if p == nil {
		return 0
	}
	return p.comm.Rank
}

// Size is the number of processes.
func (p *Processes) Size() int {
	if p == nil {
		return 1
	}
	return p.comm.Size
}

// Close leaves the others, after they have all come as far.
func (p *Processes) Close() {
	if p != nil {
		p.comm.Close()
	}
}

// Abort ends the programs of all processes: for one that cannot go on.
func (p *Processes) Abort(code int) {
	if p != nil {
		p.comm.Abort(code)
	}
}

// local is the number of processes on this machine.
func (p *Processes) local() int {
	if p == nil {
		return 1
	}
	return p.comm.LocalSize
}

// machines is the number of machines, each of which counts as one device.
func (p *Processes) machines() int {
	if p == nil {
		return 1
	}
	return p.comm.Machines
}

// threads of the device of a process where the run names none.
func (p *Processes) threads(wanted int) int {
	if p == nil || wanted > 0 {
		return wanted
	}
	return p.comm.Threads
}

// first lets process 0 run f before the others do: it makes the files that they find.
func (p *Processes) first(f func() error) error {
	if p == nil {
		return f()
	}
	if p.comm.Rank == 0 {
		if err := f(); err != nil {
			return err
		}
	}
	if err := p.comm.Broadcast([]byte{0}); err != nil || p.comm.Rank == 0 {
		return err
	}
	return f()
}

// agree holds this process's text against that of process 0.
func (p *Processes) agree(what, text string) error {
	if p == nil {
		return nil
	}
	mine := make([]byte, 1024)
	copy(mine, text)
	theirs := bytes.Clone(mine)
	if err := p.comm.Broadcast(theirs); err != nil || bytes.Equal(mine, theirs) {
		return err
	}
	return fmt.Errorf("%s: process %d has %s, process 0 has %s", what, p.comm.Rank, text, bytes.TrimRight(theirs, "\x00"))
}

// bucketBytes is from how many bytes of complete gradients on their sum is started while the way back goes on. Small ones cost a message each, large ones overlap less.
const bucketBytes = 1 << 20

// reducer sums gradients over the processes, bucket by bucket, beside the backward pass.
type reducer struct {
	comm   *bindings.Comm
	device *bindings.Device
	open   bool // in the last batch of a step
	bucket []*tensor.Tensor
	bytes  int64
	sent   map[*tensor.Param]bool
}

// ready takes a parameter whose gradient is complete. Every process has the same order, as it follows from the network.
func (r *reducer) ready(p *tensor.Param) error {
	if !r.open || r.sent[p] {
		return nil
	}
	r.sent[p] = true
	r.bucket = append(r.bucket, p.Grad)
	if r.bytes += int64(p.Grad.Len()) * 4; r.bytes < bucketBytes {
		return nil
	}
	return r.send()
}

func (r *reducer) send() error {
	defer func() { r.bucket, r.bytes = r.bucket[:0], 0 }()
	return tensor.AllReduceStart(r.comm, r.device, r.bucket)
}

// finish sends what is left, with the step's figures, and waits for all sums.
func (r *reducer) finish(params []*tensor.Param, figures *tensor.Tensor) error {
	for _, p := range params {
		if err := r.ready(p); err != nil {
			return err
		}
	}
	r.bucket = append(r.bucket, figures)
	if err := r.send(); err != nil {
		return err
	}
	clear(r.sent)
	r.open = false
	return r.comm.Wait(r.device)
}

// share is this process's part of n items, which divide evenly: count of them from low on.
func (p *Processes) share(n int) (low, count int) { return p.Rank() * n / p.Size(), n / p.Size() }

// check refuses what several processes cannot do: sum gradients that are on cards, share a batch unevenly.
func (p *Processes) check(device string, c Config) error {
	if p.Size() > 1 && device != "cpu" {
		return fmt.Errorf("%w: device: got %s, want cpu: gradients on cards cannot be summed over processes (there is no NCCL)", ErrConfig, device)
	}
	if c.Batch%p.Size() == 0 {
		return nil
	}
	return fmt.Errorf("%w: batch: got %d, want a multiple of the %d processes, which share each batch", ErrConfig, c.Batch, p.Size())
}

// sameState holds this process's step and trained weights against those of process 0: where a run begins, their folder may not be the same.
func (p *Processes) sameState(tr *Trainer) error {
	if p == nil {
		return nil
	}
	hash, err := hashParams(tr.params)
	if err != nil {
		return err
	}
	return p.agree("state", fmt.Sprintf("step %d, weights %s, frozen %s", tr.Step, hash[:16], tr.frozenHash))
}
