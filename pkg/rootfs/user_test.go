package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	passwd = `# a comment
root:x:0:0:root:/root:/bin/sh
daemon:*:1:1::/usr/sbin:/usr/sbin/nologin

alice:x:1000:1001:Alice,,,:/home/alice:/bin/sh
alice:x:0:0:second:/:/bin/sh
1000:x:0:0:trap:/:/bin/sh
+0:x:0:0:trap:/:/bin/sh
00:x:0:0:trap:/:/bin/sh
0x0:x:0:0:trap:/:/bin/sh
1e21:x:0:0:trap:/:/bin/sh
-1:x:0:0:trap:/:/bin/sh
4294967296:x:0:0:trap:/:/bin/sh
2147483648:x:0:0:trap:/:/bin/sh
389ds:x:389:389::relative:/bin/sh
nobody:x:0:65534:mapped to root:/nonexistent:/bin/sh
nonumber:x:::::
short:x
minus:x:-5:-5::/:
large:x:4294967295:1::/:
wrap:x:4294967296:1::/:
badgid:x:7:x::/:
+::::::
nohome:x:8:8
`
	group = `root:x:0:
daemon:x:1:alice
alice:x:1001:
wheel:x:10:root,alice
video:x:44:bob,alice,carol
dup:x:44:alice
bad:x:nine:alice
short
wrap:x:4294967306:alice
1000:x:0:
389ds:x:389:
`
)

// image makes a root filesystem with the files (path → content) and opens it.
func image(t testing.TB, files map[string]string) *os.File {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func id(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// rows: C-09, C-10, C-11, C-12, C-13
func TestResolveUser(t *testing.T) {
	const merge, strict = runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict
	type sc = runtimeapi.LinuxContainerSecurityContext
	root := image(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	for _, c := range []struct {
		user string
		sc   *sc
		want User
		fail string // field of the error
	}{
		{user: "", want: User{0, 0, []uint32{0, 10}, "root", "/root"}},
		{user: "root", want: User{0, 0, []uint32{0, 10}, "root", "/root"}},
		{user: "daemon", want: User{1, 1, []uint32{1}, "daemon", "/usr/sbin"}},
		{user: "alice", want: User{1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"}},
		{user: "1000", want: User{1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"}},
		{user: "alice:wheel", want: User{1000, 10, []uint32{10, 1, 44}, "alice", "/home/alice"}},
		{user: "alice:7", want: User{1000, 7, []uint32{7, 1, 10, 44}, "alice", "/home/alice"}},
		{user: "alice:", want: User{1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"}},
		{user: ":wheel", want: User{0, 10, []uint32{10}, "root", "/root"}},
		{user: "1234", want: User{1234, 0, []uint32{0}, "", "/"}},
		{user: "1234:1000", want: User{1234, 1000, []uint32{1000}, "", "/"}},
		{user: "0:0", want: User{0, 0, []uint32{0, 10}, "root", "/root"}},
		{user: "2147483647:2147483647", want: User{2147483647, 2147483647, []uint32{2147483647}, "", "/"}},
		{user: "389ds", want: User{389, 389, []uint32{389}, "389ds", "/"}},
		{user: "nobody", want: User{0, 65534, []uint32{65534}, "nobody", "/nonexistent"}},
		{user: "nohome", want: User{8, 8, []uint32{8}, "nohome", "/"}},

		{user: "alice", sc: &sc{SupplementalGroupsPolicy: strict}, want: User{1000, 1001, []uint32{1001}, "alice", "/home/alice"}},
		{user: "alice", sc: &sc{SupplementalGroups: []int64{5000, 44, 1001}}, want: User{1000, 1001, []uint32{1001, 1, 10, 44, 5000}, "alice", "/home/alice"}},
		{user: "alice", sc: &sc{SupplementalGroupsPolicy: strict, SupplementalGroups: []int64{5000, 44, 5000}}, want: User{1000, 1001, []uint32{1001, 5000, 44}, "alice", "/home/alice"}},
		{user: "root", sc: &sc{RunAsUser: id(1000)}, want: User{1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"}},
		{user: "root:wheel", sc: &sc{RunAsUser: id(1000)}, want: User{1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"}},
		{user: "x", sc: &sc{RunAsUser: id(77)}, want: User{77, 0, []uint32{0}, "", "/"}},
		{user: "alice", sc: &sc{RunAsUser: id(0)}, want: User{0, 0, []uint32{0, 10}, "root", "/root"}},
		{user: "alice", sc: &sc{RunAsUser: id(77), RunAsGroup: id(78)}, want: User{77, 78, []uint32{78}, "", "/"}},
		{user: "root", sc: &sc{RunAsUsername: "alice"}, want: User{1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"}},
		{user: "root", sc: &sc{RunAsUsername: "alice", RunAsGroup: id(10)}, want: User{1000, 10, []uint32{10, 1, 44}, "alice", "/home/alice"}},
		{user: "root", sc: &sc{RunAsUsername: "daemon", RunAsGroup: id(0), SupplementalGroupsPolicy: merge}, want: User{1, 0, []uint32{0}, "daemon", "/usr/sbin"}},

		{user: "2147483648", fail: "USER"}, {user: "4294967295", fail: "USER"}, {user: "4294967296", fail: "USER"}, {user: "-1", fail: "USER"},
		{user: "1e21", fail: "USER"}, {user: "0x0", fail: "USER"}, {user: "+0", fail: "USER"}, {user: "00", fail: "USER"}, {user: "4294967296:0", fail: "USER"},
		{user: "0:4294967296", fail: "USER"}, {user: "0:00", fail: "USER"}, {user: " 0", fail: "USER"}, {user: "0 ", fail: "USER"}, {user: "0\n", fail: "USER"},
		{user: "x:0:0", fail: "USER"}, {user: "root:1:2", fail: "USER"}, {user: "0_0", fail: "USER"}, {user: "99999999999999999999999", fail: "USER"},
		{user: "none", fail: "USER"}, {user: "root:none", fail: "USER"}, {user: "alice:1000x", fail: "USER"}, {user: "nonumber", fail: "USER"},
		{user: "short", fail: "USER"}, {user: "minus", fail: "USER"}, {user: "large", fail: "USER"}, {user: "wrap", fail: "USER"}, {user: "badgid", fail: "USER"},
		{user: "7", fail: "USER"}, {user: "root:bad", fail: "USER"}, {user: "root:short", fail: "USER"}, {user: "root:wrap", fail: "USER"}, {user: "# a comment", fail: "USER"},
		{user: strings.Repeat("a", 1<<20), fail: "USER"},
		{sc: &sc{RunAsUser: id(-1)}, fail: fieldUser}, {sc: &sc{RunAsUser: id(1 << 31)}, fail: fieldUser}, {sc: &sc{RunAsUser: id(1 << 32)}, fail: fieldUser},
		{sc: &sc{RunAsUser: id(1), RunAsGroup: id(-1)}, fail: fieldGroup}, {sc: &sc{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, fail: fieldGroup},
		{sc: &sc{RunAsGroup: id(1)}, fail: fieldGroup}, {user: "alice", sc: &sc{RunAsGroup: id(1)}, fail: fieldGroup},
		{sc: &sc{RunAsUsername: "none"}, fail: fieldName}, {sc: &sc{RunAsUsername: "1000"}, fail: fieldName}, {sc: &sc{RunAsUsername: "alice:root"}, fail: fieldName},
		{sc: &sc{RunAsUsername: "alice", RunAsUser: id(1)}, fail: fieldName},
		{sc: &sc{SupplementalGroups: []int64{-1}}, fail: fieldGroups + "[0]"}, {sc: &sc{SupplementalGroups: []int64{1, 1 << 32}}, fail: fieldGroups + "[1]"},
		{sc: &sc{SupplementalGroupsPolicy: 9}, fail: fieldPolicy},
	} {
		got, err := ResolveUser(root, c.user, c.sc)
		if c.fail != "" {
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.HasPrefix(err.Error(), c.fail) || len(err.Error()) > 300 {
				t.Errorf("USER %.40q, %v: got %+v, %.300v; want an error of %s", c.user, c.sc, got, err, c.fail)
			}
			continue
		}
		if err != nil || got.UID != c.want.UID || got.GID != c.want.GID || !slices.Equal(got.Groups, c.want.Groups) || got.Name != c.want.Name || got.Home != c.want.Home {
			t.Errorf("USER %q, %v: got %+v, %v; want %+v", c.user, c.sc, got, err, c.want)
		}
	}
	many := make([]int64, maxGroups+1)
	for i := range many {
		many[i] = int64(i)
	}
	if _, err := ResolveUser(root, "", &sc{SupplementalGroups: many}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%d groups: %v", len(many), err)
	}
}

func TestLookupUser(t *testing.T) {
	root := image(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	for spec, want := range map[string]User{
		"":             {0, 0, []uint32{0, 10}, "root", "/root"},
		"alice":        {1000, 1001, []uint32{1001, 1, 10, 44}, "alice", "/home/alice"},
		"alice:daemon": {1000, 1, []uint32{1}, "alice", "/home/alice"},
		"1000:0":       {1000, 0, []uint32{0}, "alice", "/home/alice"},
		"55":           {55, 0, []uint32{0}, "", "/"},
	} {
		got, err := LookupUser(root, spec)
		if err != nil || got.UID != want.UID || got.GID != want.GID || !slices.Equal(got.Groups, want.Groups) || got.Name != want.Name || got.Home != want.Home {
			t.Errorf("%q: got %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"bob", "+0", "root:bob", "a:b:c"} {
		if got, err := LookupUser(root, spec); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: got %+v, %v", spec, got, err)
		}
	}
}

// A line whose ID cannot be read is not the one of ID 0.
func TestMalformedLineIsNotRoot(t *testing.T) {
	root := image(t, map[string]string{"etc/passwd": "bad:x:x:5::/bad:\nroot:x:0:0::/root:\n", "etc/group": "bad:x:x:\nroot:x:0:\n"})
	for _, user := range []string{"", "0", "root", "0:0"} {
		if u, err := ResolveUser(root, user, nil); err != nil || u.Name != "root" || u.Home != "/root" || u.GID != 0 {
			t.Errorf("USER %q: got %+v, %v", user, u, err)
		}
	}
}

func TestImageWithoutUserFiles(t *testing.T) {
	root := image(t, nil)
	if u, err := ResolveUser(root, "5:6", nil); err != nil || u.UID != 5 || u.GID != 6 {
		t.Errorf("got %+v, %v", u, err)
	}
	if u, err := ResolveUser(root, "root", nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a name without passwd: got %+v, %v", u, err)
	}
	unix.Symlinkat("/nowhere", int(root.Fd()), "etc")
	if u, err := ResolveUser(root, "", nil); err != nil || u.Home != "/" {
		t.Errorf("dangling link: got %+v, %v", u, err)
	}
}

// What an image may put in the place of /etc/passwd takes neither time nor memory, and leads nowhere else.
func TestEvilUserFiles(t *testing.T) {
	canary := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(canary, []byte("evil:x:0:0::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(etc string) error{
		"fifo":      func(etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) },
		"zero":      func(etc string) error { return unix.Mknod(etc+"/passwd", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"directory": func(etc string) error { return os.Mkdir(etc+"/passwd", 0o755) },
		"socket":    func(etc string) error { return unix.Mknod(etc+"/passwd", unix.S_IFSOCK|0o666, 0) },
		"loop":      func(etc string) error { return os.Symlink("passwd", etc+"/passwd") },
		"etc is a file": func(etc string) error {
			return errors.Join(os.Remove(etc), os.WriteFile(etc, nil, 0o644))
		},
		"sparse": func(etc string) error {
			return errors.Join(os.WriteFile(etc+"/passwd", nil, 0o644), os.Truncate(etc+"/passwd", 10<<30))
		},
		"group fifo": func(etc string) error { return unix.Mkfifo(etc+"/group", 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			root := image(t, map[string]string{"etc/x": ""})
			etc := filepath.Join(root.Name(), "etc")
			os.Remove(etc + "/x")
			if err := make(etc); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			u, err := ResolveUser(root, "evil", nil)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "etc") && !strings.Contains(err.Error(), "passwd") {
				t.Errorf("got %+v, %v", u, err)
			}
			if d, m := time.Since(start), after.TotalAlloc-before.TotalAlloc; d > 5*time.Second || m > 32<<20 {
				t.Errorf("took %v and %d bytes", d, m)
			}
		})
	}
	// Links are followed within the root only: each of these names a user of the host that the image does not have.
	for _, target := range []string{canary, "../../../../../../../../../.." + canary, "/proc/self/root" + canary, "/proc/1/root/etc/passwd"} {
		root := image(t, map[string]string{"etc/x": ""})
		if err := os.Symlink(target, filepath.Join(root.Name(), "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if u, err := ResolveUser(root, "evil", nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %+v, %v", target, u, err)
		}
	}
	// And an absolute link that stays in the image works.
	root := image(t, map[string]string{"usr/etc/passwd": "in:x:5:6::/:\n", "etc/x": ""})
	os.Symlink("/usr/etc/passwd", filepath.Join(root.Name(), "etc/passwd"))
	if u, err := ResolveUser(root, "in", nil); err != nil || u.UID != 5 {
		t.Errorf("link within the image: got %+v, %v", u, err)
	}
}

// A long line and many lines are no trouble below the limit.
func TestLongUserFiles(t *testing.T) {
	long := "big:x:77:" + strings.Repeat("someone,", 250000) + "alice\n" // 2 MB in one line
	root := image(t, map[string]string{"etc/passwd": passwd, "etc/group": long})
	u, err := ResolveUser(root, "alice", nil)
	if err != nil || !slices.Equal(u.Groups, []uint32{1001, 77}) {
		t.Errorf("got %+v, %v", u, err)
	}
}

func BenchmarkResolveUser(b *testing.B) {
	root := image(b, map[string]string{"etc/passwd": passwd, "etc/group": group})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ResolveUser(root, "alice", nil); err != nil {
			b.Fatal(err)
		}
	}
}
