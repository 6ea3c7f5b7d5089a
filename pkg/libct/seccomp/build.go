package seccomp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// span is a range of syscall numbers, up to the next span, and where it leads.
type span struct {
	first uint32
	to    label
}

// spans are in the order of their numbers and cover all of them.
type spans []span

// add begins a span; one that leads where the last one does continues it.
func (s *spans) add(first uint32, to label) {
	if n := len(*s); n > 0 && (*s)[n-1].first == first {
		*s = (*s)[:n-1]
	}
	if n := len(*s); n > 0 && (*s)[n-1].to == to {
		return
	}
	*s = append(*s, span{first, to})
}

// builder turns a filter into a program.
type builder struct {
	*program
	filter                *ScmpFilter
	rules                 []rule // of the filter, without those that cannot matter
	fallback, bad, enosys label
	decisions             map[string]label // see decide
}

// build returns the program, as the kernel takes it.
func (f *ScmpFilter) build() ([]byte, error) {
	if f.ready != nil {
		return f.ready, nil
	}
	rules, err := f.effective()
	if err != nil {
		return nil, err
	}
	b := builder{program: newProgram(), filter: f, rules: rules, decisions: map[string]label{}}
	b.fallback = b.ret(f.fallback)
	b.bad = b.ret(retKillThread) // libseccomp's action for a foreign architecture
	b.enosys = b.ret(retErrno | uint32(unix.ENOSYS))

	var audits []uint32
	entries := map[uint32]label{}
	for _, arch := range f.arches {
		a := findABI(arch)
		if a == nil || slices.Contains(audits, a.audit) {
			continue
		}
		audits = append(audits, a.audit)
		b.jumpTo(b.search(b.spans(a.audit)))
		entries[a.audit] = b.load(offsetNumber)
	}
	next := b.bad
	for _, audit := range slices.Backward(audits) { // the native one is asked for first
		next = b.jump(opEqual, audit, entries[audit], next)
	}
	b.jumpTo(next)
	b.load(offsetArch)
	return b.bytes()
}

// effective returns the rules without those with conditions on syscalls that
// also have one without. It is an error to have two without and not to mean
// the same: so it is in libseccomp.
func (f *ScmpFilter) effective() ([]rule, error) {
	always := make(map[int]uint32, len(f.rules))
	for _, r := range f.rules {
		if len(r.conditions) > 0 {
			continue
		}
		if action, ok := always[r.syscall]; ok && action != r.action {
			return nil, fmt.Errorf("seccomp: two rules for %s without conditions have different actions", syscalls[r.syscall].name)
		}
		always[r.syscall] = r.action
	}
	rules := make([]rule, 0, len(f.rules))
	for _, r := range f.rules {
		if _, ok := always[r.syscall]; !ok || len(r.conditions) == 0 {
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// search finds the span of the loaded number.
func (b *builder) search(s spans) label {
	switch {
	case len(s) == 1:
		return s[0].to
	case len(s) == 3 && s[0].to == s[2].to && s[2].first-s[1].first == 1:
		return b.jump(opEqual, s[1].first, s[1].to, s[0].to)
	}
	middle := len(s) / 2
	upper := b.search(s[middle:])
	lower := b.search(s[:middle])
	return b.jump(opGreaterEqual, s[middle].first, upper, lower)
}

// spans returns where the syscall numbers of an audit architecture lead.
func (b *builder) spans(audit uint32) spans {
	var s spans
	if audit != auditX86_64 {
		i := slices.IndexFunc(abis[:], func(a abi) bool { return a.audit == audit })
		b.abiSpans(&s, &abis[i])
		return s
	}
	amd64, x32 := b.inFilter(ArchAMD64), b.inFilter(ArchX32)
	amd64New, x32New := b.bad, b.bad
	s.add(0, b.bad)
	if amd64 != nil {
		amd64New = b.abiSpans(&s, amd64)
	}
	s.add(x32Bit, b.bad)
	if x32 != nil {
		x32New = b.abiSpans(&s, x32)
	}
	// With the topmost bit no number is a syscall. runc's ENOSYS looks at the
	// bit of x32 alone, libseccomp takes these and all above for x32.
	const topBit = 1 << 31
	if amd64New != b.enosys {
		amd64New = x32New
	}
	s.add(topBit, amd64New)
	s.add(topBit|x32Bit, x32New)
	if x32 == nil && amd64 != nil {
		// A tracer skips a syscall by making its number -1, and then the
		// filter sees it (seccomp(2)): it must not kill.
		s.add(math.MaxUint32, b.fallback)
	}
	return s
}

func (b *builder) inFilter(arch ScmpArch) *abi {
	if !slices.Contains(b.filter.arches, arch) {
		return nil
	}
	return findABI(arch)
}

// abiSpans adds the spans of an ABI, the last of which leads to what is
// returned: the decision about syscalls that are too new.
func (b *builder) abiSpans(s *spans, a *abi) label {
	s.add(a.base, b.fallback)
	newest, limited := b.newest(a)
	rules := b.resolve(a)
	for len(rules) > 0 && !(limited && rules[0].number > newest) {
		number := rules[0].number
		n := slices.IndexFunc(rules, func(r numbered) bool { return r.number != number })
		if n < 0 {
			n = len(rules)
		}
		s.add(number, b.decide(rules[:n], a.wide))
		s.add(number+1, b.fallback)
		rules = rules[n:]
	}
	if !limited {
		return b.fallback
	}
	s.add(newest+1, b.enosys)
	return b.enosys
}

// newest returns the largest number that the profile names; false, if those
// beyond are nothing special.
func (b *builder) newest(a *abi) (uint32, bool) {
	var newest uint32
	if b.filter.enosys {
		for _, i := range b.filter.named {
			if nr, ok := a.number(&syscalls[i]); ok {
				newest = max(newest, nr)
			}
		}
	}
	return newest, newest > 0
}

// numbered is a rule for a syscall number of one ABI.
type numbered struct {
	number uint32
	rule   int // in builder.rules
	// call is what the first argument must be, instead of the rule's
	// condition on it, if the number is of a mux; else 0.
	call uint64
}

// resolve returns the rules of an ABI by number, in the order of the profile.
func (b *builder) resolve(a *abi) []numbered {
	resolved := make([]numbered, 0, len(b.rules)+len(muxes))
	for i, r := range b.rules {
		e := &syscalls[r.syscall]
		if nr, ok := a.number(e); ok {
			resolved = append(resolved, numbered{number: nr, rule: i})
		}
		if !a.muxed {
			continue
		}
		if m, ok := muxes[e.name]; ok {
			through, _ := findSyscall(m.syscall)
			nr, _ := a.number(&syscalls[through])
			resolved = append(resolved, numbered{nr, i, m.call})
		}
	}
	slices.SortFunc(resolved, func(x, y numbered) int {
		return cmp.Or(cmp.Compare(x.number, y.number), cmp.Compare(x.rule, y.rule))
	})
	return resolved
}

// conditions are those of the rule, or of its call through a mux.
func (b *builder) conditions(n numbered) []ScmpCondition {
	all := b.rules[n.rule].conditions
	if n.call == 0 {
		return all
	}
	through := []ScmpCondition{{Op: CompareEqual, Operand1: n.call}}
	for _, c := range all {
		if c.Argument != 0 {
			through = append(through, c)
		}
	}
	return through
}

// decide returns the decision between the rules of one syscall. ABIs with
// arguments of the same width share it.
func (b *builder) decide(rules []numbered, wide bool) label {
	key := []byte{0}
	if wide {
		key[0] = 1
	}
	for _, n := range rules {
		if len(b.conditions(n)) == 0 {
			return b.ret(b.rules[n.rule].action)
		}
		key = binary.AppendUvarint(key, uint64(n.rule))
		key = binary.AppendUvarint(key, n.call)
	}
	l, ok := b.decisions[string(key)]
	if !ok {
		l = b.chain(rules, wide)
		b.decisions[string(key)] = l
	}
	return l
}

// chain emits the rules, which all have conditions: the first that holds
// decides.
func (b *builder) chain(rules []numbered, wide bool) label {
	next := b.fallback
	for _, n := range slices.Backward(rules) {
		yes := b.ret(b.rules[n.rule].action)
		for _, c := range slices.Backward(b.conditions(n)) {
			yes = b.condition(c, wide, yes, next)
		}
		next = yes
	}
	return next
}
