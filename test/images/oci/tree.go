package oci

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// Tree writes the entries of one layer. The parents of a path are added, root's and 0755, when they are missing.
type Tree struct {
	tw   *tar.Writer
	dirs map[string]bool
	err  error
}

func (t *Tree) close() error {
	if t.err != nil {
		return t.err
	}
	return t.tw.Close()
}

// Fail makes the layer fail with err, if it is one and the first.
func (t *Tree) Fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// Entry writes an entry as it is, sensible or not. Only what would make the bytes differ from one machine to the
// next is evened out.
func (t *Tree) Entry(h tar.Header, body io.Reader) {
	if t.err != nil {
		return
	}
	if h.ModTime.IsZero() {
		h.ModTime = Epoch
	}
	h.ModTime = h.ModTime.Truncate(time.Second)
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	h.Format = tar.FormatUnknown
	t.Fail(t.tw.WriteHeader(&h))
	if body != nil && t.err == nil {
		_, err := io.Copy(t.tw, body)
		t.Fail(err)
	}
}

// Raw writes an empty entry of a kind (tar.TypeReg, ...) without its parents.
func (t *Tree) Raw(kind byte, name, link string) {
	t.Entry(tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o644}, nil)
}

func (t *Tree) parents(name string) {
	if dir := path.Dir(name); dir != "." && dir != "/" {
		t.Dir(0o755, dir)
	}
}

// Dir adds directories, unless the layer has them.
func (t *Tree) Dir(mode int64, names ...string) {
	for _, n := range names {
		t.DirEntry(tar.Header{Name: n, Mode: mode})
	}
}

// DirEntry adds a directory with all that its header says, unless the layer has it.
func (t *Tree) DirEntry(h tar.Header) {
	if t.dirs[h.Name] {
		return
	}
	t.parents(h.Name)
	t.Occupied(h.Name)
	h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	t.Entry(h, nil)
}

// Occupied says that a directory need not be added: something else stands in its place.
func (t *Tree) Occupied(names ...string) {
	for _, n := range names {
		t.dirs[n] = true
	}
}

// Bytes adds a file.
func (t *Tree) Bytes(name string, mode int64, b []byte) {
	t.parents(name)
	t.Entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(b))}, bytes.NewReader(b))
}

// File adds a file with mode 0644.
func (t *Tree) File(name, text string) { t.Bytes(name, 0o644, []byte(text)) }

// Copy adds a file of this machine.
func (t *Tree) Copy(name string, mode int64, from string) {
	b, err := os.ReadFile(from)
	t.Fail(err)
	t.Bytes(name, mode, b)
}

// Symlink adds a symbolic link.
func (t *Tree) Symlink(name, target string) {
	t.parents(name)
	t.Entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// Hardlink adds another name for a file of this layer, or of one below.
func (t *Tree) Hardlink(name, target string) {
	t.parents(name)
	t.Entry(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}, nil)
}

// Tar adds every entry of a tar stream for which keep, if given, is true. Paths are moved below /usr where a system
// with merged /usr has them.
func (t *Tree) Tar(r io.Reader, keep func(name string) bool) {
	for tr := tar.NewReader(r); t.err == nil; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fail(err)
			return
		}
		name := usrMerged(h.Name)
		if name == "" || (keep != nil && !keep(name)) {
			continue
		}
		out := tar.Header{Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, Size: h.Size, ModTime: h.ModTime}
		switch h.Typeflag {
		case tar.TypeDir:
			t.DirEntry(out)
			continue
		case tar.TypeLink:
			out.Linkname = usrMerged(h.Linkname)
		}
		t.parents(name)
		t.Entry(out, tr)
	}
}

// usrMerged cleans an archive's path and moves the old top directories under usr, as dpkg does on such a system.
func usrMerged(p string) string {
	p = strings.Trim(path.Clean("/"+p), "/")
	top, _, _ := strings.Cut(p, "/")
	switch top {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return "usr/" + p
	}
	return p
}
