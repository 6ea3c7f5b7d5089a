package main

import (
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/test/images/oci"
)

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"

	pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
disk:x:6:
wheel:x:10:root
mail:x:12:
www-data:x:33:
users:x:100:
nogroup:x:65534:
`

// builder fills one layout.
type builder struct {
	*oci.Layout
	debian *debian
}

// multi stores an image for amd64 and a stub for arm64 under one index, as upstream's images are.
func (b *builder) multi(im oci.Image) ocispec.Descriptor {
	stub := oci.Image{Config: im.Config, Docker: im.Docker, Arch: "arm64",
		Layers: []oci.Layer{b.Layer(func(t *oci.Tree) { t.File("this-is-arm64", "") })}}
	return b.Index(im.Docker, b.Image(stub), b.Image(im))
}

// busyboxImage is the image that nearly every test runs.
func (b *builder) busyboxImage() (oci.Image, error) {
	binary, err := b.debian.busybox()
	if err != nil {
		return oci.Image{}, err
	}
	applets, err := command("", binary, "--list")
	if err != nil {
		return oci.Image{}, err
	}
	layer := b.Layer(func(t *oci.Tree) {
		t.Dir(0o755, "bin", "dev", "etc", "home", "root", "usr/bin", "usr/sbin", "var/spool/mail", "var/www")
		t.Dir(0o1777, "tmp")
		t.Copy("bin/busybox", 0o755, binary)
		for _, a := range strings.Fields(string(applets)) {
			if a != "busybox" {
				t.Hardlink("bin/"+a, "bin/busybox")
			}
		}
		t.Symlink("usr/bin/env", "../../bin/env")
		t.File("etc/passwd", passwd)
		t.File("etc/group", group)
		t.Bytes("etc/shadow", 0o600, []byte("root:*:::::::\n"))
	})
	return oci.Image{Docker: true, Layers: []oci.Layer{layer}, Config: ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{pathEnv}}}, nil
}

// critest is every image that critest pulls, and the pause images that a runtime may want.
func critest(b *builder) error {
	busybox, err := b.busyboxImage()
	if err != nil {
		return err
	}
	b.Tag(e2e+"busybox:1.29-2", b.multi(busybox))
	if err := b.pauses(); err != nil {
		return err
	}
	if err := b.setuid(busybox); err != nil {
		return err
	}
	b.users(busybox)
	b.tags(busybox)
	return b.servers()
}

// pauses: two references to one image, whose ID no other pause image may have, for a test counts the tags of that ID.
func (b *builder) pauses() error {
	binary, err := b.debian.cc("pause")
	if err != nil {
		return err
	}
	layer := b.Layer(func(t *oci.Tree) { t.Copy("pause", 0o755, binary) })
	pause := func(version string, docker bool) ocispec.Descriptor {
		return b.multi(oci.Image{Layers: []oci.Layer{layer}, Docker: docker, Config: ocispec.ImageConfig{User: "65535:65535",
			Entrypoint: []string{"/pause"}, Env: []string{pathEnv}, Labels: map[string]string{"version": version}}})
	}
	same := pause("3.9", true)
	b.Tag("registry.k8s.io/pause:3.9", same)
	b.Tag("k8s.gcr.io/pause:3.9", same)
	b.Tag("registry.k8s.io/pause:3.10.1", pause("3.10.1", false))
	return nil
}

func (b *builder) setuid(busybox oci.Image) error {
	binary, err := b.debian.cc("nnp")
	if err != nil {
		return err
	}
	nnp := busybox.With(b.Layer(func(t *oci.Tree) { t.Copy("usr/local/bin/nnp", 0o4755, binary) }))
	nnp.Config.Cmd = []string{"nnp"}
	b.Tag(e2e+"nonewprivs:1.3", b.multi(nnp))
	return nil
}

// users are images that say who runs them.
func (b *builder) users(busybox oci.Image) {
	for name, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"} {
		im := busybox
		im.Config.User = user
		b.Tag(staging+"test-image-user-"+name+":latest", b.multi(im))
	}
	predefined := busybox.With(b.Layer(func(t *oci.Tree) {
		t.Dir(0o755, "home/default-user")
		t.File("etc/passwd", passwd+"default-user:x:1000:1000::/home/default-user:/bin/sh\n")
		t.File("etc/group", group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
	}))
	predefined.Config.User = "1000"
	b.Tag(staging+"test-image-predefined-group:latest", b.multi(predefined))
}

// tags are images for the tests of references: different ones, one under three tags, and one known by its digest.
func (b *builder) tags(busybox oci.Image) {
	marked := func(name string) ocispec.Descriptor {
		return b.multi(busybox.With(b.Layer(func(t *oci.Tree) { t.File(name, "") })))
	}
	for _, n := range []string{"1", "2", "3", "latest"} {
		b.Tag(staging+"test-image-"+n+":latest", marked("test-image-"+n))
	}
	for _, n := range []string{"test", "all"} {
		b.Tag(staging+"test-image-tag:"+n, marked(n))
	}
	same := marked("same-image")
	for _, n := range []string{"1", "2", "3"} {
		b.Tag(staging+"test-image-tags:"+n, same)
	}
	// A manifest and not an index, for some runtimes report the digests of both and the test wants exactly one.
	byDigest := b.Image(oci.Image{Docker: true, Config: busybox.Config, Layers: []oci.Layer{
		b.Layer(func(t *oci.Tree) { t.File("test-image-digest", "") })}})
	b.Tag(staging+"test-image-digest@"+byDigest.Digest.String(), byDigest)
}

// minbase is what debootstrap calls by that name: Debian's essential packages and apt.
var minbase = strings.Fields("apt base-files base-passwd bash coreutils dash debianutils diffutils dpkg findutils grep gzip hostname " +
	"init-system-helpers libc-bin login mawk ncurses-base ncurses-bin perl-base sed sysvinit-utils tar util-linux")

// base stores Debian's base system as a layer, with the few things that the packages' scripts would have made.
func (b *builder) base(slim bool, as ...oci.Compression) (packages, oci.Layer, error) {
	debs, err := b.debian.closure(packages{}, minbase...)
	if err != nil {
		return debs, oci.Layer{}, err
	}
	users := map[string][]byte{}
	for _, f := range []string{"passwd", "group"} {
		if users[f], err = debs.member("base-passwd", "./usr/share/base-passwd/"+f+".master"); err != nil {
			return debs, oci.Layer{}, err
		}
	}
	return debs, b.Layer(func(t *oci.Tree) {
		for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
			t.Dir(0o755, "usr/"+l)
			t.Symlink(l, "usr/"+l)
		}
		t.Symlink("var/run", "/run")
		t.Symlink("var/lock", "/run/lock")
		t.Occupied("var/run", "var/lock") // base-files has them as directories until its script runs
		debs.addTo(t, slim)
		for f, text := range users {
			t.Bytes("etc/"+f, 0o644, text)
		}
		t.Symlink("usr/bin/awk", "mawk")
		t.Symlink("etc/mtab", "/proc/self/mounts")
		t.File("etc/hostname", "localhost\n")
	}, as...), nil
}

// servers are the web servers of the network tests.
func (b *builder) servers() error {
	debs, base, err := b.base(true)
	if err != nil {
		return err
	}
	nginx, err := b.nginx(debs, base)
	if err != nil {
		return err
	}
	b.Tag(e2e+"nginx:1.14-2", b.multi(nginx))
	b.Tag(staging+"hostnet-nginx-amd64:latest", b.Image(nginx.With(b.Layer(func(t *oci.Tree) {
		t.File("etc/nginx/conf.d/default.conf", nginxSite(12003))
	}))))
	httpd, err := b.httpd(debs, base)
	if err != nil {
		return err
	}
	b.Tag(e2e+"httpd:2.4.39-4", b.multi(httpd))
	return nil
}

func nginxSite(port int) string {
	return fmt.Sprintf("server {\n    listen %d;\n    server_name localhost;\n    location / { root /usr/share/nginx/html; index index.html; }\n}\n", port)
}

const nginxConf = `user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /var/log/nginx/error.log notice;
events { worker_connections 512; }
http {
    include /etc/nginx/mime.types;
    access_log /var/log/nginx/access.log;
    include /etc/nginx/conf.d/*.conf;
}
`

func (b *builder) nginx(base packages, layer oci.Layer) (oci.Image, error) {
	debs, err := b.debian.closure(base, "nginx")
	if err != nil {
		return oci.Image{}, err
	}
	busybox, err := b.debian.busybox()
	if err != nil {
		return oci.Image{}, err
	}
	server := b.Layer(func(t *oci.Tree) { debs.addTo(t, true) })
	site := b.Layer(func(t *oci.Tree) {
		t.File("etc/nginx/nginx.conf", nginxConf)
		t.File("etc/nginx/conf.d/default.conf", nginxSite(80))
		t.File("usr/share/nginx/html/index.html", "<html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1></html>\n")
		// GNU grep warns of the NULs in /proc/1/cmdline, and a test wants nothing on stderr.
		t.Copy("usr/local/bin/grep", 0o755, busybox)
		t.Symlink("var/log/nginx/access.log", "/dev/stdout")
		t.Symlink("var/log/nginx/error.log", "/dev/stderr")
	})
	return oci.Image{Layers: []oci.Layer{layer, server, site}, Config: ocispec.ImageConfig{
		Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{pathEnv},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT",
	}}, nil
}

const httpdConf = `ServerRoot /usr/local/apache2
ServerName localhost
Listen 80
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
TypesConfig /dev/null
User www-data
Group www-data
PidFile /usr/local/apache2/logs/httpd.pid
DefaultRuntimeDir /usr/local/apache2/logs
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
StartServers 1
ErrorLog /proc/self/fd/2
CustomLog /proc/self/fd/1 "%h %l %u %t \"%r\" %>s %b"
LogLevel notice
`

func (b *builder) httpd(base packages, layer oci.Layer) (oci.Image, error) {
	debs, err := b.debian.closure(base, "apache2-bin")
	if err != nil {
		return oci.Image{}, err
	}
	server := b.Layer(func(t *oci.Tree) { debs.addTo(t, true) })
	site := b.Layer(func(t *oci.Tree) {
		t.Symlink("usr/local/apache2/bin/httpd", "/usr/sbin/apache2")
		t.Dir(0o755, "usr/local/apache2/logs", "var/run/apache2")
		t.File("usr/local/apache2/conf/httpd.conf", httpdConf)
		t.File("usr/local/apache2/htdocs/index.html", "<html><body><h1>It works!</h1></body></html>\n")
	})
	return oci.Image{Layers: []oci.Layer{layer, server, site}, Config: ocispec.ImageConfig{
		Cmd:        []string{"httpd", "-D", "FOREGROUND", "-f", "/usr/local/apache2/conf/httpd.conf"},
		Env:        []string{"PATH=/usr/local/apache2/bin:" + strings.TrimPrefix(pathEnv, "PATH=")},
		WorkingDir: "/usr/local/apache2", ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGWINCH",
	}}, nil
}
