// Package optest holds, for every op of fluxir.h, what the op means and on which cases it is tried. One Case object drives the tests of value,
// gradient, guard bands and determinism, and the benchmark, on every device that opens.
//
// # How to add an op
//
// Write <op>.go beside gate.go, which is the example to copy, with one function per C function that makes a Case from dtype and shape, and
// two lists: <op>Cases, small and awkward shapes for the tests, and <op>Bench, the shapes that matter for speed with the samples that are checked
// (bench.go). Add the op's line to Ops in ops.go. A Case holds:
//
//   - Op, the C function without fx_; DType, the tested dtype. Its name is made of dtype and shapes; Note adds what else tells it apart.
//   - Args, every tensor of the call: In("x", dtype, B, L, C), Out (overwritten), Acc (+=; a gradient of an activation by .Accumulated())
//     or InOut (read and overwritten). An
//     absent (NULL) argument is simply not listed. Values are normal with deviation 1 unless told: .Normal(0.1), .Uniform(lo, hi), .From(f).
//     .Packed() says that the op wants no gaps between rows, .Strided(...) asks for particular strides, .Alias("x") that the output
//     may share x's storage.
//   - Run, the call. t["x"] is the tensor, nil where the case lists none.
//   - Formula, the op once more as plain loops over row-major []float64. It is run three ways: as the reference R (all float64), as the naive
//     program N, whose every stored result is rounded to the tested dtype and whose sums are in f32, in several orders, and by the
//     gradient test. So write p.R(x) around each intermediate that a program of separate simple ops would store, p.F(x) around
//     statistics that stay f32, and p.Sum for each reduction. Outputs are rounded to their own dtype on return. Fill Acc as if it were Out: the
//     caller adds. v["dw"] is nil when not listed; loops over it then do nothing.
//   - Forward, for a backward op: the case whose gradient it is. Inputs that are outputs of Forward (mean, lse, o, ...) come from its Formula,
//     and the gradient test holds "dx" against central differences of Forward by "x", with weights "dy" on its outputs "y".
//   - FLOPs, additions and multiplications of the formula as one would count them by hand. Bytes follow from Args.
//   - Exact, for ops without rounding of their own (copies, casts): bits are compared.
//
// A case in which some tensor has no elements must return OK and is tried for nothing else; give every function one. Sizes 1, 15, 16, 17 and
// odd ones belong into the list; more than about 10^6 terms in a Formula make the suite slow.
//
// The rule (check.go): max|K-R| <= c max|N-R| + a, and rms likewise, c = 2 forward and 3 backward. If a right kernel misses the bound, the formula
// stores less often than the naive program would, or the case is ill-conditioned; there are no tolerances to set.
package optest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fluxir/fluxir/bindings"
)

// floats are the dtypes that most ops are tested in.
var floats = []bindings.DType{bindings.F32, bindings.BF16}

// Op is one row of the registry: the functions of one csrc/<name>.cpp.
type Op struct {
	Name  string
	Cases func() []Case  // for the tests
	Bench func() []Bench // for cmd/kbench
}

// Values are the arguments of a formula by name, row-major without gaps; a tensor that the case does not list is nil.
type Values map[string][]float64

// Tensors are the arguments of a call by name; nil stands for an absent one.
type Tensors map[string]*bindings.Tensor

// Case is one call of one op. See the package comment for what to write where.
type Case struct {
	Op      string
	DType   bindings.DType
	Note    string
	Args    []Arg
	Run     func(d *bindings.Device, t Tensors) error
	Formula func(p *Prec, v Values)
	Forward *Case
	FLOPs   int
	Exact   bool
}

// String is a name without spaces: dtype, the distinct shapes of the inputs, note.
func (c *Case) String() string {
	parts := []string{c.DType.String()}
	for _, a := range c.Args {
		if shape := strings.Trim(strings.ReplaceAll(fmt.Sprint(a.Shape), " ", "x"), "[]"); a.reads() && !slices.Contains(parts, shape) {
			parts = append(parts, shape)
		}
	}
	if c.Note != "" {
		parts = append(parts, strings.ReplaceAll(c.Note, " ", "-"))
	}
	return strings.Join(parts, "_")
}

// Bytes that any implementation must move: each input read once, each output written once, += both.
func (c *Case) Bytes() int {
	total := 0
	for _, a := range c.Args {
		bytes := a.Len() * a.DType.Size()
		if a.reads() {
			total += bytes
		}
		if a.writes() {
			total += bytes
		}
	}
	return total
}

// Empty reports whether some tensor has no elements.
func (c *Case) Empty() bool {
	return slices.ContainsFunc(c.Args, func(a Arg) bool { return a.Len() == 0 })
}

// Without is the case with NULL for the named arguments.
func (c Case) Without(names ...string) Case {
	c.Args = slices.DeleteFunc(slices.Clone(c.Args), func(a Arg) bool { return slices.Contains(names, a.Name) })
	c.Note = strings.TrimSpace(c.Note + " no " + strings.Join(names, " "))
	return c
}

// arg finds an argument by name, nil if the case lists none.
func (c *Case) arg(name string) *Arg {
	for i := range c.Args {
		if c.Args[i].Name == name {
			return &c.Args[i]
		}
	}
	return nil
}

// Role says what the op does with a tensor.
type Role int

// Roles of an argument.
const (
	RoleIn    Role = iota // read
	RoleOut               // overwritten
	RoleAcc               // added to: a gradient
	RoleInOut             // read and overwritten: state of the optimizer
)

// accumulating adds to a note that the op adds to its gradient.
func accumulating(note string, accumulate bool) string {
	if accumulate {
		note = strings.TrimSpace(note + " accumulate")
	}
	return note
}

// Arg is one tensor of a call.
type Arg struct {
	Name  string
	Role  Role
	DType bindings.DType
	Shape []int

	gen     generator
	from    func(v Values, x []float64)
	packed  bool
	strides []int
	alias   []string
}

// In is a tensor the op reads.
func In(name string, dtype bindings.DType, shape ...int) Arg {
	return Arg{Name: name, Role: RoleIn, DType: dtype, Shape: shape}
}

// Out is a tensor the op overwrites; it holds NaN before.
func Out(name string, dtype bindings.DType, shape ...int) Arg {
	return Arg{Name: name, Role: RoleOut, DType: dtype, Shape: shape}
}

// Acc is a gradient of a parameter, which the op adds to: F32, without gaps. The formula writes the gradient alone.
func Acc(name string, shape ...int) Arg {
	return Arg{Name: name, Role: RoleAcc, DType: bindings.F32, Shape: shape, packed: true}
}

// Accumulated makes an output one that the op adds to, if on. The formula writes the summand alone.
func (a Arg) Accumulated(on bool) Arg {
	if on {
		a.Role = RoleAcc
	}
	return a
}

// InOut is a tensor the op reads and overwrites; the formula finds the old value in it.
func InOut(name string, dtype bindings.DType, shape ...int) Arg {
	return Arg{Name: name, Role: RoleInOut, DType: dtype, Shape: shape}
}

// Normal sets the standard deviation of the values (mean 0).
func (a Arg) Normal(deviation float64) Arg {
	a.gen = normal(deviation)
	return a
}

// Uniform draws the values from [low, high).
func (a Arg) Uniform(low, high float64) Arg {
	a.gen = uniform(low, high)
	return a
}

// From computes the values, from the inputs listed before if need be. They are rounded to the dtype afterwards.
func (a Arg) From(f func(v Values, x []float64)) Arg {
	a.from = f
	return a
}

// Packed says that the op accepts no gaps between rows.
func (a Arg) Packed() Arg {
	a.packed = true
	return a
}

// Strided fixes the strides, in elements, in every variant of the case: for ops that take any. 0 in an input broadcasts; its values must then not
// vary along that dimension (use From).
func (a Arg) Strided(strides ...int) Arg {
	a.strides = strides
	return a
}

// Alias says that this output may share the storage of any of the named inputs (same dtype and shape): one more variant for each.
func (a Arg) Alias(inputs ...string) Arg {
	a.alias = inputs
	return a
}

// Len is the number of elements.
func (a *Arg) Len() int {
	n := 1
	for _, s := range a.Shape {
		n *= s
	}
	return n
}

func (a *Arg) reads() bool  { return a.Role != RoleOut }
func (a *Arg) writes() bool { return a.Role != RoleIn }
