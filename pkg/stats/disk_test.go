package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// blocks sums what lstat says of files.
func blocks(t *testing.T, names ...string) (sum uint64) {
	t.Helper()
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			t.Fatal(err)
		}
		sum += uint64(st.Blocks) * 512
	}
	return sum
}

// rows: A-14
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write(t, in("file"), string(make([]byte, 100_000)))
	for _, d := range []string{"d", "d/e"} {
		if err := os.Mkdir(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"d/link1", "d/e/link2"} {
		if err := os.Link(in("file"), in(link)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, in("d/sparse"), "")
	if err := os.Truncate(in("d/sparse"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", in("root")); err != nil { // is not followed
		t.Fatal(err)
	}
	if err := unix.Mkfifo(in("d/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := blocks(t, dir, in("file"), in("d"), in("d/e"), in("d/sparse"), in("root"), in("d/fifo"))
	bytes, inodes, err := Disk(dir)
	if err != nil || bytes != want || inodes != 7 {
		t.Errorf("%d bytes, %d inodes, %v, want %d, 7", bytes, inodes, err, want)
	}
}

// TestDiskCountsLinksFromOutside: a file counts whole if there is one link to it.
func TestDiskCountsLinksFromOutside(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "file"), string(make([]byte, 8192)))
	if err := os.Link(filepath.Join(dir, "file"), filepath.Join(below, "link")); err != nil {
		t.Fatal(err)
	}
	want := blocks(t, below, filepath.Join(dir, "file"))
	if bytes, inodes, err := Disk(below); err != nil || bytes != want || inodes != 2 {
		t.Errorf("%d bytes, %d inodes, %v, want %d, 2", bytes, inodes, err, want)
	}
}

func TestDiskStaysInItsFilesystem(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(other, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	write(t, filepath.Join(other, "file"), string(make([]byte, 1<<20)))
	if bytes, inodes, err := Disk(dir); err != nil || inodes != 1 || bytes >= 1<<20 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
}

// TestDiskTreeThatChanges removes and makes what is walked.
func TestDiskTreeThatChanges(t *testing.T) {
	dir := t.TempDir()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d := filepath.Join(dir, fmt.Sprint(i%50))
			if os.RemoveAll(d) == nil && os.MkdirAll(filepath.Join(d, "x/y"), 0o755) == nil {
				_ = os.WriteFile(filepath.Join(d, "x/f"), nil, 0o600)
			}
		}
	}()
	for range 300 {
		if _, inodes, err := Disk(dir); err != nil || inodes == 0 || inodes > 300 {
			t.Errorf("%d inodes, %v", inodes, err)
			break
		}
	}
	close(stop)
	<-stopped
}

func TestDiskErrors(t *testing.T) {
	if _, _, err := Disk(filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := DiskContext(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
}

// TestDiskDeepTree makes a tree that is deeper than a path can name.
func TestDiskDeepTree(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range maxDiskDepth + 500 {
		if err := unix.Mkdirat(fd, "abcdefgh", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "abcdefgh", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	_, inodes, err := Disk(dir)
	if !errors.Is(err, errdefs.ErrOutOfRange) || inodes != maxDiskDepth+1 {
		t.Errorf("%d inodes, %v", inodes, err)
	}
}

func BenchmarkDisk(b *testing.B) {
	dir := b.TempDir()
	for i := range 100 {
		d := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range 100 {
			if err := os.WriteFile(filepath.Join(d, fmt.Sprint(j)), nil, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Disk(dir); err != nil {
			b.Fatal(err)
		}
	}
}
