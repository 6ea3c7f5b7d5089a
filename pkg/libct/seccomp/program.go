package seccomp

import (
	"encoding/binary"
	"fmt"
	"math"
)

// instruction is struct sock_filter of <linux/filter.h>.
type instruction struct {
	op     uint16
	jt, jf uint8
	k      uint32
}

const (
	instructionSize = 8
	// maxInstructions is BPF_MAXINSNS of <linux/bpf_common.h>.
	maxInstructions = 4096
)

// The instructions that a filter needs, from <linux/bpf_common.h>.
const (
	opLoad         = 0x20 // BPF_LD | BPF_W | BPF_ABS
	opAnd          = 0x54 // BPF_ALU | BPF_AND | BPF_K
	opGoto         = 0x05 // BPF_JMP | BPF_JA
	opEqual        = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	opGreater      = 0x25 // BPF_JMP | BPF_JGT | BPF_K
	opGreaterEqual = 0x35 // BPF_JMP | BPF_JGE | BPF_K
	opReturn       = 0x06 // BPF_RET | BPF_K
)

// Offsets in struct seccomp_data of <linux/seccomp.h>.
const (
	offsetNumber = 0
	offsetArch   = 4
)

// offsetArgument is where the lower or upper half of an argument is, on a
// little-endian machine.
func offsetArgument(arg uint, upper bool) uint32 {
	offset := 16 + 8*uint32(arg)
	if upper {
		offset += 4
	}
	return offset
}

// A label is an instruction to jump to: how far it is from the program's end.
type label int

// program is a BPF program that is built from its end: code[0] is the last
// instruction. What is emitted next runs before all that is there, falls
// through to the last emitted instruction and can jump to any label.
type program struct {
	code    []instruction
	returns map[uint32]label
	relays  map[label]label // the last relay to a label
}

func newProgram() *program {
	return &program{
		code:    make([]instruction, 0, 1024),
		returns: map[uint32]label{},
		relays:  map[label]label{},
	}
}

func (p *program) emit(i instruction) label {
	p.code = append(p.code, i)
	return label(len(p.code))
}

// distance is the number of instructions that a jump emitted now skips.
func (p *program) distance(to label) int { return len(p.code) - int(to) }

// ret returns a label where value is returned.
func (p *program) ret(value uint32) label {
	l, ok := p.returns[value]
	if !ok {
		l = p.emit(instruction{op: opReturn, k: value})
		p.returns[value] = l
	}
	return l
}

func (p *program) load(offset uint32) label { return p.emit(instruction{op: opLoad, k: offset}) }

// jump compares what was loaded with k.
func (p *program) jump(op uint16, k uint32, yes, no label) label {
	if yes == no {
		return p.jumpTo(yes)
	}
	// A relay for one label makes the way to the other one longer.
	no = p.reach(no, maxSkip-1)
	yes = p.reach(yes, maxSkip)
	return p.emit(instruction{op: op, jt: uint8(p.distance(yes)), jf: uint8(p.distance(no)), k: k})
}

// maxSkip is how many instructions a conditional jump can skip.
const maxSkip = math.MaxUint8

// reach returns the label, or if it is too far a relay to it: one that is
// near enough from before, or a new one.
func (p *program) reach(to label, limit int) label {
	if p.distance(to) <= limit {
		return to
	}
	if relay, ok := p.relays[to]; ok && p.distance(relay) <= limit {
		return relay
	}
	relay := p.code[to-1]
	if relay.op != opReturn {
		relay = instruction{op: opGoto, k: uint32(p.distance(to))}
	}
	p.relays[to] = p.emit(relay)
	return p.relays[to]
}

// jumpTo emits nothing if the label is what comes next anyway.
func (p *program) jumpTo(to label) label {
	if p.distance(to) == 0 {
		return to
	}
	return p.emit(instruction{op: opGoto, k: uint32(p.distance(to))})
}

// bytes returns the program in the order and the form that the kernel takes.
func (p *program) bytes() ([]byte, error) {
	if len(p.code) > maxInstructions {
		return nil, fmt.Errorf("seccomp: the profile needs %d BPF instructions, the kernel takes %d: use fewer conditions on arguments",
			len(p.code), maxInstructions)
	}
	b := make([]byte, 0, len(p.code)*instructionSize)
	for i := len(p.code) - 1; i >= 0; i-- {
		c := p.code[i]
		b = binary.NativeEndian.AppendUint16(b, c.op)
		b = append(b, c.jt, c.jf)
		b = binary.NativeEndian.AppendUint32(b, c.k)
	}
	return b, nil
}

// condition emits code that goes to yes or no.
func (p *program) condition(c ScmpCondition, wide bool, yes, no label) label {
	operand, mask := c.Operand1, ^uint64(0)
	if c.Op == CompareMaskedEqual {
		mask = c.Operand1
		operand = c.Operand2 & mask
	}
	op := uint16(opEqual)
	switch c.Op {
	case CompareNotEqual:
		yes, no = no, yes
	case CompareGreater:
		op = opGreater
	case CompareGreaterEqual:
		op = opGreaterEqual
	case CompareLess:
		op, yes, no = opGreaterEqual, no, yes
	case CompareLessOrEqual:
		op, yes, no = opGreater, no, yes
	}
	p.jump(op, uint32(operand), yes, no)
	lower := p.loadMasked(c.Argument, false, uint32(mask))
	if !wide {
		return lower
	}
	upper := uint32(operand >> 32)
	next := p.jump(opEqual, upper, lower, no)
	if op != opEqual { // the upper half alone may decide
		p.jump(opGreater, upper, yes, next)
	}
	return p.loadMasked(c.Argument, true, uint32(mask>>32))
}

func (p *program) loadMasked(arg uint, upper bool, mask uint32) label {
	if mask != ^uint32(0) {
		p.emit(instruction{op: opAnd, k: mask})
	}
	return p.load(offsetArgument(arg, upper))
}
