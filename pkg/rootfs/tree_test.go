package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Without openat2 a path means the same.
func TestWalk(t *testing.T) {
	canary := t.TempDir()
	os.WriteFile(canary+"/secret", nil, 0o644)
	root := image(t, map[string]string{"a/b/file": "", "file": ""})
	for target, name := range map[string]string{"/a": "abs", "../../../a/b": "a/up", canary: "out", "loop": "loop", "/proc/self/root" + canary: "magic"} {
		if err := os.Symlink(target, filepath.Join(root.Name(), name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{
		"", "/", "a", "/a/b/file", "abs/b/file", "/a/up/file", "../../file", "a/../file", "out", "out/secret", canary, "loop", "magic/secret", "file/x", "none",
		strings.Repeat("n", 256), "abs/b/../../file",
	} {
		one, oneErr := open(root, path)
		two, twoErr := walk(root, path)
		if (oneErr == nil) != (twoErr == nil) || errors.Is(oneErr, unix.ENOENT) != errors.Is(twoErr, unix.ENOENT) ||
			errors.Is(oneErr, errdefs.ErrInvalidArgument) != errors.Is(twoErr, errdefs.ErrInvalidArgument) {
			t.Errorf("%.40q: %v; %v", path, oneErr, twoErr)
			continue
		}
		if oneErr != nil {
			continue
		}
		a, _ := one.Stat()
		b, _ := two.Stat()
		if !os.SameFile(a, b) {
			t.Errorf("%q: %s and %s", path, a.Name(), b.Name())
		}
		one.Close()
		two.Close()
	}
}

func TestMkdirAll(t *testing.T) {
	old := unix.Umask(0o077) // the mode must not depend on it
	defer unix.Umask(old)
	canary := t.TempDir()
	root := image(t, map[string]string{"file": "", "there/x": ""})
	dir := root.Name()
	for target, name := range map[string]string{
		"there": "rel", "/there": "abs", "../../../../there": "up", canary: "out", "loop": "loop", "new/deep": "dangling", "/made/by": "absdangling",
		"/proc/self/root" + canary: "magic",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ path, made string }{
		{"/", "."}, {"", "."}, {"/a/b/c", "a/b/c"}, {"a//./d", "a/d"}, {"/there/y", "there/y"}, {"/there", "there"}, {"/rel/z", "there/z"},
		{"/abs/q/", "there/q"}, {"/up/r", "there/r"}, {"/out/x", canary[1:] + "/x"}, {"/../../e", "e"}, {"/a/../../../f", "f"},
		{"/dangling/g", "new/deep/g"}, {"/absdangling/h", "made/by/h"}, {"/magic/i", "proc/self/root" + canary + "/i"},
	} {
		d, err := MkdirAll(root, c.path, 1234, 5678)
		if err != nil {
			t.Errorf("%q: %v", c.path, err)
			continue
		}
		got, gerr := d.Stat()
		want, werr := os.Stat(filepath.Join(dir, c.made))
		if gerr != nil || werr != nil || !os.SameFile(got, want) {
			t.Errorf("%q: is not %s: %v, %v", c.path, c.made, gerr, werr)
			continue
		}
		if _, err := d.Readdirnames(-1); err != nil {
			t.Errorf("%q: cannot be read: %v", c.path, err)
		}
		d.Close()
		st := want.Sys().(*syscall.Stat_t)
		isOld := c.made == "." || c.made == "there"
		if !isOld && (st.Uid != 1234 || st.Gid != 5678 || want.Mode().Perm() != 0o755) {
			t.Errorf("%q: owner %d:%d, mode %v", c.path, st.Uid, st.Gid, want.Mode())
		}
		if isOld && st.Uid != 0 {
			t.Errorf("%q: the owner of what was there changed", c.path)
		}
	}
	for _, path := range []string{"/file", "/file/x", "/loop", "/loop/x", "/" + strings.Repeat("n", 256), strings.Repeat("/d", 4096), "/a\x00b"} {
		d, err := MkdirAll(root, path, 0, 0)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || len(err.Error()) > 900 {
			t.Errorf("%.40q: got %v, %.200v", path, d, err)
		}
	}
	if left, _ := os.ReadDir(canary); len(left) > 0 {
		t.Errorf("outside of the root there is now %v", left)
	}
}

// While directories are made, someone in the container swaps one of them for a link that leads out.
func TestMkdirAllRace(t *testing.T) {
	canary := t.TempDir()
	root := image(t, map[string]string{"a/x": ""})
	a, link := filepath.Join(root.Name(), "a"), filepath.Join(root.Name(), "link")
	if err := os.Symlink(canary, link); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	swaps := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ; !stop.Load(); swaps++ {
			unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
		}
	}()
	for i := range 500 {
		if d, err := MkdirAll(root, fmt.Sprintf("/a/d%d/e", i), 0, 0); err == nil {
			d.Close()
		}
	}
	stop.Store(true)
	<-done
	if left, _ := os.ReadDir(canary); len(left) > 0 || swaps == 0 {
		t.Errorf("after %d swaps there is outside of the root %v", swaps, left)
	}
}

// tree makes one of everything below dir.
func tree(t *testing.T, dir string) {
	t.Helper()
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"", "sub", "sub/empty", "sub/sticky"} {
		step(os.MkdirAll(p(d), 0o755))
	}
	step(os.WriteFile(p("plain"), []byte("hello"), 0o640))
	step(os.WriteFile(p("sub/suid"), []byte("x"), 0o755))
	step(os.WriteFile(p("sub/zero"), nil, 0o000))
	step(os.Link(p("plain"), p("sub/hard")))
	step(os.Symlink("/etc/shadow", p("abs")))
	step(os.Symlink("../plain", p("sub/rel")))
	step(os.Link(p("abs"), p("abs2"))) // a hard link to a link
	step(unix.Mkfifo(p("fifo"), 0o622))
	step(unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	step(unix.Mknod(p("disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 1))))
	step(unix.Mknod(p("sock"), unix.S_IFSOCK|0o600, 0))
	big, err := os.Create(p("sparse"))
	step(err)
	for _, at := range []int64{1 << 20, 20 << 20, 3 << 30} {
		_, err = big.WriteAt([]byte(fmt.Sprint("at ", at)), at)
		step(err)
	}
	step(big.Truncate(5 << 30))
	step(big.Close())
	step(unix.Lchown(p("abs"), 7, 8))
	step(os.Chown(p("plain"), 1000, 1001))
	step(os.Chown(p("sub/suid"), 1000, 0))
	step(os.Chmod(p("sub/suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	step(os.Chown(p("sub/sticky"), 5, 5))
	step(os.Chmod(p("sub/sticky"), 0o777|os.ModeSticky))
	step(unix.Setxattr(p("plain"), "user.note", []byte("n\x00te"), 0))
	step(unix.Setxattr(p("sub"), "trusted.note", []byte("dir"), 0))
	step(unix.Setxattr(p("sub"), "trusted.overlay.opaque", []byte("y"), 0))
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_bind_service=ep (VFS_CAP_REVISION_2)
	step(unix.Setxattr(p("sub/suid"), "security.capability", capability, 0))
	step(os.Chmod(p(""), 0o2750))
	step(os.Chown(p(""), 42, 43))
	step(os.Chmod(p(""), 0o750|os.ModeSetgid))
	old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	for _, name := range []string{"plain", "sub/suid", "sub/empty", "fifo", "sub", ""} {
		step(os.Chtimes(p(name), old, old))
	}
	step(unix.UtimesNanoAt(unix.AT_FDCWD, p("abs"), []unix.Timespec{{Sec: 5}, {Sec: 6}}, unix.AT_SYMLINK_NOFOLLOW))
}

// describe tells all of a tree that a copy must have: path → a line.
func describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	out, inodes := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("mode %o owner %d:%d dev %d mtime %d.%d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, _ := os.Readlink(name)
			s += " to " + target
		case unix.S_IFREG:
			s += fmt.Sprint(" size ", st.Size)
			if st.Size < 1<<20 {
				text, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				s += fmt.Sprintf(" %q", text)
			}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first, ok := inodes[st.Ino]; ok {
				s += " is " + first
			} else {
				inodes[st.Ino] = rel
			}
		}
		for _, attr := range []string{"user.note", "trusted.note", "trusted.overlay.opaque", "security.capability"} {
			value := make([]byte, 100)
			if n, err := unix.Lgetxattr(name, attr, value); err == nil {
				s += fmt.Sprintf(" %s=%q", attr, value[:n])
			}
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rows: K-22, P-116
func TestCopyUp(t *testing.T) {
	root := image(t, map[string]string{"x": ""})
	src := filepath.Join(root.Name(), "data")
	tree(t, src)
	os.Symlink("/data", filepath.Join(root.Name(), "link"))
	for _, path := range []string{"/data", "/link/", "/../data"} {
		dst, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		if err := CopyUp(root, path, dst); err != nil {
			t.Fatal(err)
		}
		want, got := describe(t, src), describe(t, dst.Name())
		want["sub"] = strings.Replace(want["sub"], ` trusted.overlay.opaque="y"`, "", 1)
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s: %s\n got  %s\n want %s", path, name, got[name], want[name])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d entries; want %d", len(got), len(want))
		}
		for _, at := range []int64{1 << 20, 20 << 20, 3 << 30} {
			f, _ := os.Open(filepath.Join(dst.Name(), "sparse"))
			text := make([]byte, len(fmt.Sprint("at ", at)))
			f.ReadAt(text, at)
			f.Close()
			if string(text) != fmt.Sprint("at ", at) {
				t.Errorf("sparse: %q at %d", text, at)
			}
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dst.Name(), "sparse"), &st); st.Blocks*512 > 1<<20 {
			t.Errorf("the copy of a sparse file takes %d bytes", st.Blocks*512)
		}
	}
}

func TestCopyUpOfOtherThings(t *testing.T) {
	canary := t.TempDir()
	os.WriteFile(canary+"/secret", nil, 0o644)
	root := image(t, map[string]string{"file": "x", "etc/x": ""})
	os.Symlink(canary, filepath.Join(root.Name(), "out"))
	unix.Mkfifo(filepath.Join(root.Name(), "fifo"), 0o644)
	dst, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	for path, invalid := range map[string]bool{"/none": false, "/out": false, "/out/secret": false, "/../.." + canary: false, "/file": true, "/fifo": true, "/file/x": true} {
		err := CopyUp(root, path, dst)
		if invalid != errors.Is(err, errdefs.ErrInvalidArgument) || (err != nil) != invalid {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, _ := os.ReadDir(dst.Name()); len(left) > 0 {
		t.Errorf("copied %v", left)
	}
}

func TestCopyUpDeepAndCancelled(t *testing.T) {
	root := image(t, map[string]string{"d/x": "y"})
	deep := filepath.Join(root.Name(), "d")
	for range maxDepth + 1 {
		deep += "/d"
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	dst, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	before := descriptors(t)
	if err := CopyUp(root, "/d", dst); !errors.Is(err, errdefs.ErrInvalidArgument) || len(err.Error()) > 900 {
		t.Errorf("deeper than the limit: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := CopyUpContext(ctx, root, "/d", dst); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	runtime.GC()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A tree of many small files, as a volume of an image has them.
func BenchmarkCopyUp(b *testing.B) {
	files := map[string]string{}
	for i := range 500 {
		files[fmt.Sprintf("v/%d/%d", i%10, i)] = strings.Repeat("x", 4000)
	}
	root := image(b, files)
	for i := 0; b.Loop(); i++ {
		dst, err := os.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		if err := CopyUp(root, "/v", dst); err != nil {
			b.Fatal(err)
		}
		dst.Close()
	}
}
