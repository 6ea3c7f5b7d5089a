package ulimit

import (
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const unlimited = ^uint64(0)

func TestParse(t *testing.T) {
	got, err := Parse([]string{"nofile=1024:4096", "core=0", "memlock=-1"})
	want := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_MEMLOCK", Soft: unlimited, Hard: unlimited},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"", "nofile", "nofile=", "nofile=1:", "nofile=x", "nofile=-2", "files=1", "core=2:1", "core=1,core=2",
		"NOFILE=1", " nofile=1", "nofile=18446744073709551615", strings.Repeat("x", 5000)} {
		if got, err := Parse(strings.Split(bad, ",")); err == nil || len(err.Error()) > 400 {
			t.Errorf("%.50q: %v %v", bad, got, err)
		}
	}
}

func TestMerge(t *testing.T) {
	base := []specs.POSIXRlimit{{Type: "A", Soft: 1}, {Type: "B", Soft: 2}}
	got := Merge(base, []specs.POSIXRlimit{{Type: "B", Soft: 3}, {Type: "C", Soft: 4}})
	if want := []specs.POSIXRlimit{{Type: "A", Soft: 1}, {Type: "B", Soft: 3}, {Type: "C", Soft: 4}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if base[1].Soft != 2 {
		t.Error("the base was changed")
	}
}
