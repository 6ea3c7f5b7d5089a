package seccomp

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// call is struct seccomp_data: what a program is asked about.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func (c call) String() string {
	return fmt.Sprintf("arch %#x nr %d (%#x) args %#x", c.arch, c.nr, c.nr, c.args)
}

// run interprets a program as the kernel does. It takes all that libseccomp
// and Compile emit.
func run(t testing.TB, program []byte, c call) uint32 {
	t.Helper()
	data := make([]byte, 0, 64)
	data = binary.LittleEndian.AppendUint32(data, c.nr)
	data = binary.LittleEndian.AppendUint32(data, c.arch)
	data = binary.LittleEndian.AppendUint64(data, 0)
	for _, a := range c.args {
		data = binary.LittleEndian.AppendUint64(data, a)
	}
	var a uint32
	for pc := 0; pc*8 < len(program); pc++ {
		i := program[pc*8:]
		op, jt, jf, k := binary.NativeEndian.Uint16(i), int(i[2]), int(i[3]), binary.NativeEndian.Uint32(i[4:])
		var holds bool
		switch op {
		case opLoad:
			a = binary.LittleEndian.Uint32(data[k:])
			continue
		case opAnd:
			a &= k
			continue
		case opReturn:
			return k
		case opGoto:
			pc += int(k)
			continue
		case opEqual:
			holds = a == k
		case opGreater:
			holds = a > k
		case opGreaterEqual:
			holds = a >= k
		default:
			t.Fatalf("instruction %d: op %#x", pc, op)
		}
		if holds {
			pc += jt
		} else {
			pc += jf
		}
	}
	t.Fatalf("%v: ran over the end", c)
	return 0
}
