package main

import (
	"fmt"
	"math/rand/v2"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/images/oci"
)

// tool is what the containers of benchmarks run.
func tool(b *builder) error {
	busybox, err := b.busyboxImage()
	if err != nil {
		return err
	}
	binary, err := b.debian.cc("benchtool")
	if err != nil {
		return err
	}
	tool := busybox.With(b.Layer(func(t *oci.Tree) { t.Copy("benchtool", 0o755, binary) }))
	tool.Docker, tool.Config = false, ocispec.ImageConfig{Entrypoint: []string{"/benchtool"}, Cmd: []string{"pause"}, Env: []string{pathEnv}}
	b.Tag("docker.io/testimages/benchtool:v2", b.Image(tool))
	return nil
}

// bench are images of realistic sizes, for benchmarks of pulling.
func bench(b *builder) error {
	debs, slim, err := b.base(true)
	if err != nil {
		return err
	}
	nginx, err := b.nginx(debs, slim)
	if err != nil {
		return err
	}
	b.Tag("docker.io/library/nginx:1.22", b.Image(nginx))
	b.Tag("docker.io/library/debian:12-slim", b.Image(oci.Image{Layers: []oci.Layer{slim},
		Config: ocispec.ImageConfig{Cmd: []string{"bash"}, Env: []string{pathEnv}}}))
	return b.large()
}

// large is a full Debian with a layer for each group of packages and one of an application's own data, about 1.1 GB,
// once with gzip and once with zstd.
func (b *builder) large() error {
	debs, base, err := b.base(false, oci.Gzip, oci.Zstd)
	if err != nil {
		return err
	}
	layers := []oci.Layer{base}
	for _, names := range []string{"perl curl ca-certificates", "python3 python3-pip", "gcc g++ make", "git vim-nox", "nodejs", "postgresql", "default-jre-headless"} {
		more, err := b.debian.closure(debs, strings.Fields(names)...)
		if err != nil {
			return err
		}
		debs = debs.plus(more)
		layers = append(layers, b.Layer(func(t *oci.Tree) { more.addTo(t, false) }, oci.Gzip, oci.Zstd))
	}
	layers = append(layers, b.Layer(application, oci.Gzip, oci.Zstd))
	im := oci.Image{Layers: layers, Config: ocispec.ImageConfig{Cmd: []string{"bash"}, Env: []string{pathEnv}}}
	b.Tag("docker.io/testimages/large:gzip", b.Image(im))
	im.Compression = oci.Zstd
	b.Tag("docker.io/testimages/large:zstd", b.Image(im))
	return nil
}

// application is 40 MB that do not compress and 4000 small files.
func application(t *oci.Tree) {
	model := make([]byte, 40<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(model) // never fails
	t.Bytes("srv/app/model.bin", 0o644, model)
	for i := range 4000 {
		t.File(fmt.Sprintf("srv/app/src/pkg%02d/file%04d.go", i%40, i), strings.Repeat(fmt.Sprintf("// line of file %d\n", i), 1+i%200))
	}
}
