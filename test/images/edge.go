package main

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/images/oci"
)

// edges builds the images that are legal but unusual, docker.io/edge/*, and those that must be refused or made
// harmless, docker.io/evil/*. All stand on busybox, so that a container of them can tell what it sees.
type edges struct {
	*builder
	busybox oci.Image
}

// edge is the set of them all.
func edge(b *builder) error {
	busybox, err := b.busyboxImage()
	if err != nil {
		return err
	}
	busybox.Docker = false
	busybox.Config.Labels = map[string]string{"set": "edge"} // its own image ID
	e := edges{builder: b, busybox: busybox}
	e.trees()
	e.layers()
	e.configs()
	e.indexes()
	e.escapes()
	return e.lies()
}

// layered tags an image with one more layer for each fill.
func (e edges) layered(ref string, fills ...func(t *oci.Tree)) {
	im := e.busybox
	for _, f := range fills {
		im = im.With(e.Layer(f))
	}
	e.Tag("docker.io/"+ref, e.Image(im))
}

// trees have odd files.
func (e edges) trees() {
	e.layered("edge/whiteout:v1", // must show /kept, /dir/z, /dir/sub2/new; not /gone, /dir/x, /dir/sub, /dir/sub2/old
		func(t *oci.Tree) {
			for _, name := range []string{"gone", "kept", "dir/x", "dir/sub/y", "dir/sub2/old"} {
				t.File(name, "x")
			}
		}, func(t *oci.Tree) {
			t.File(".wh.gone", "")
			t.File("dir/z", "z") // before the opaque marker, on purpose
			t.File("dir/.wh..wh..opq", "")
			t.File("dir/sub2/new", "n")
		})
	e.layered("edge/hardlinks:v1", // /a, /b and /c have the same content
		func(t *oci.Tree) { t.Bytes("a", 0o755, []byte("one file\n")); t.Hardlink("b", "a") },
		func(t *oci.Tree) { t.Hardlink("c", "a") })
	e.layered("edge/modes:v1", func(t *oci.Tree) {
		t.Bytes("suid", 0o4755, []byte("x"))
		t.Bytes("sgid", 0o2755, []byte("x"))
		t.Dir(0o1777, "sticky")
		t.Dir(0o2775, "sgid-dir")
		t.Entry(tar.Header{Typeflag: tar.TypeReg, Name: "owned", Mode: 0o640, Uid: 12345, Gid: 54321}, nil)
		t.Entry(tar.Header{Typeflag: tar.TypeReg, Name: "caps", Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": netRawCapability(), "SCHILY.xattr.user.note": "hello"}}, nil)
		t.Entry(tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, nil)
		t.Entry(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, nil)
	})
	e.layered("edge/names:v1", func(t *oci.Tree) {
		t.File(strings.Repeat("long-directory-name/", 12)+strings.Repeat("n", 200), "deep\n")
		t.File("unicode-日本語-é", "u\n")
		t.File("new\nline and space", "n\n")
		t.Symlink("link", strings.Repeat("t", 300))
		t.File("./dot/slash", "d\n")
	})
	e.layered("edge/typechange:v1", // /d becomes a file, /f a directory, /l a link to /real
		func(t *oci.Tree) { t.File("d/inner", "i"); t.File("f", "f"); t.Dir(0o755, "l", "real") },
		func(t *oci.Tree) {
			t.File("d", "now a file\n")
			t.File("f/inner", "now a directory\n")
			t.Symlink("l", "real")
		},
		func(t *oci.Tree) { t.File("real/through", "t\n") })
}

// layers are many, empty, repeated, or not compressed as usual.
func (e edges) layers() {
	many := e.busybox
	for i := range 120 {
		many = many.With(e.Layer(func(t *oci.Tree) { t.File(fmt.Sprintf("layers/%03d", i), fmt.Sprintln(i)) }))
	}
	e.Tag("docker.io/edge/manylayers:v1", e.Image(many))
	empty, full := e.Layer(func(*oci.Tree) {}), e.Layer(func(t *oci.Tree) { t.File("layers/000", "0\n") })
	e.Tag("docker.io/edge/emptylayers:v1", e.Image(e.busybox.With(empty).With(full).With(empty).With(full)))
	for _, c := range []oci.Compression{oci.Plain, oci.Zstd} {
		shell, err := e.debian.busybox()
		layer := e.Layer(func(t *oci.Tree) { t.Fail(err); t.Copy("bin/sh", 0o755, shell); t.File("comp", string(c)+"\n") }, c)
		e.Tag("docker.io/edge/compression:"+string(c), e.Image(oci.Image{Layers: []oci.Layer{layer}, Compression: c, Config: e.busybox.Config}))
	}
	e.Tag("docker.io/edge/imagevolume:v1", e.Image(oci.Image{Layers: []oci.Layer{e.Layer(func(t *oci.Tree) {
		t.File("file", "1\n")
		t.File("dir/file", "2\n")
	})}}))
}

// configs say unusual things about how to run.
func (e edges) configs() {
	volume := e.busybox.With(e.Layer(func(t *oci.Tree) { t.File("vol/from-image", "copied into the volume\n") }))
	volume.Config.Volumes = map[string]struct{}{"/vol": {}}
	e.Tag("docker.io/edge/volume:v1", e.Image(volume))

	full := e.busybox
	full.Config = ocispec.ImageConfig{Entrypoint: []string{"/bin/echo", "entry"}, Cmd: []string{"cmd"}, Env: []string{pathEnv, "A=1", "B=two words", "EMPTY="},
		WorkingDir: "/made/by/runtime", User: "1000:2000", StopSignal: "SIGINT", Labels: map[string]string{"l": "v"}}
	e.Tag("docker.io/edge/config:v1", e.Image(full))

	nobody := e.busybox
	nobody.Config.User = "nosuchuser" // no container can be made of it
	e.Tag("docker.io/edge/nouser:v1", e.Image(nobody))
}

// indexes have more in them, or less, than an image for this platform.
func (e edges) indexes() {
	im := e.Image(e.busybox)
	foreign := e.busybox
	foreign.Arch = "arm64"
	attestation := e.Image(oci.Image{Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	e.Tag("docker.io/edge/index:v1", e.Index(false, attestation, e.Image(foreign), im))
	e.Tag("docker.io/edge/nested-index:v1", e.Index(false, e.Index(false, im)))
	e.Tag("docker.io/edge/arm64-only:v1", e.Index(false, e.Image(foreign))) // cannot be pulled

	titled := func(title, text string) ocispec.Descriptor {
		d := e.Write("application/vnd.example.data", []byte(text))
		if title != "" {
			d.Annotations = map[string]string{ocispec.AnnotationTitle: title}
		}
		return d
	}
	e.Tag("docker.io/edge/artifact:v1", e.WriteJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example.artifact",
		Config: e.Write(ocispec.MediaTypeEmptyJSON, []byte("{}")), Layers: []ocispec.Descriptor{
			titled("model.txt", "an artifact, not an image\n"), titled("dir/run", "#!/bin/sh\necho ran\n"), titled("", "untitled")}}))
}

// victim is a directory that a test makes before it pulls what escapes aims at it; all else aims at /tmp/PWNED*.
const victim = "/tmp/criserver-victim"

// escapes try to write, link or remove outside of the image's own tree.
func (e edges) escapes() {
	const reg, sym, link = tar.TypeReg, tar.TypeSymlink, tar.TypeLink
	e.layered("evil/dotdot:v1", func(t *oci.Tree) { t.Raw(reg, "../../../../../../../tmp/PWNED-dotdot", "") })
	e.layered("evil/absolute:v1", func(t *oci.Tree) { t.Raw(reg, "/tmp/PWNED-absolute", "") }) // may land inside
	e.layered("evil/symlink:v1", func(t *oci.Tree) { t.Raw(sym, "esc", "/tmp"); t.Raw(reg, "esc/PWNED-symlink", "") })
	e.layered("evil/symlink-layers:v1",
		func(t *oci.Tree) { t.Raw(sym, "esc", "../../../../../../../../tmp") },
		func(t *oci.Tree) { t.Raw(reg, "esc/PWNED-symlink-layers", "") })
	e.layered("evil/hardlink:v1", func(t *oci.Tree) { t.Raw(link, "stolen", "../../../../../../../../etc/hostname") })
	e.layered("evil/hardlink-symlink:v1", func(t *oci.Tree) { t.Raw(sym, "esc", "/etc"); t.Raw(link, "stolen", "esc/hostname") })
	e.layered("evil/whiteout-dotdot:v1", func(t *oci.Tree) { t.Raw(reg, "sub/.wh..", ""); t.Raw(reg, ".wh...", "") })
	e.layered("evil/whiteout-symlink:v1",
		func(t *oci.Tree) { t.Raw(sym, "esc", victim) },
		func(t *oci.Tree) { t.Raw(reg, "esc/.wh.file", "") })
	e.layered("evil/opaque-symlink:v1",
		func(t *oci.Tree) { t.Raw(sym, "esc", victim) },
		func(t *oci.Tree) { t.Raw(reg, "esc/.wh..wh..opq", "") })
	e.layered("evil/overlay-xattr:v1", func(t *oci.Tree) { // markers that only the kernel may set
		t.Entry(tar.Header{Typeflag: tar.TypeDir, Name: "r/", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/../../../etc"}}, nil)
		t.Entry(tar.Header{Typeflag: tar.TypeChar, Name: "bin/ls", Mode: 0o600}, nil)
	})
}

// lies are images whose parts are not what their descriptors say.
func (e edges) lies() error {
	base := e.busybox.Layers[0]
	wrong := e.busybox.With(e.Layer(func(t *oci.Tree) { t.File("bad", "bad") }))
	wrong.DiffIDs = []digest.Digest{base.DiffID, digest.FromString("something else")}
	e.Tag("docker.io/evil/diffid:v1", e.Image(wrong))
	wrong.DiffIDs = []digest.Digest{base.DiffID}
	e.Tag("docker.io/evil/diffid-count:v1", e.Image(wrong))

	short := e.Layer(func(t *oci.Tree) { t.File("short", "short") })
	claim := short.Blob(oci.Gzip)
	claim.Size += 1000
	e.Tag("docker.io/evil/size:v1", e.Image(e.busybox.With(short.Claiming(claim))))

	e.layered("evil/bomb:v1", func(t *oci.Tree) { // 2 GiB of zeros in 2 MB
		t.Entry(tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Mode: 0o644, Size: 2 << 30}, io.LimitReader(zeros{}, 2<<30))
	})
	e.Tag("docker.io/evil/notjson:v1", e.Write(ocispec.MediaTypeImageManifest,
		[]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2,"config":`)))

	corrupt := e.Layer(func(t *oci.Tree) { t.File("cut", strings.Repeat("cut", 1000)) })
	e.Tag("docker.io/evil/corrupt:v1", e.Image(e.busybox.With(corrupt)))
	return damage(e.BlobPath(corrupt.Blob(oci.Gzip).Digest))
}

// damage flips a byte in the middle of a file.
func damage(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 0xff
	return os.WriteFile(path, b, 0o644)
}

// netRawCapability is a security.capability attribute of version 2 with CAP_NET_RAW effective and permitted.
func netRawCapability() string {
	var b bytes.Buffer
	for _, v := range []uint32{0x02000001, 1 << 13, 0, 0, 0} {
		_ = binary.Write(&b, binary.LittleEndian, v) // into memory: never fails
	}
	return b.String()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
