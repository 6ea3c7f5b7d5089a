package blackbox

import (
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

const volumeImage = "docker.io/edge/imagevolume:v1" // /file and /dir/file

// imageAt mounts an image, or a directory of it.
func imageAt(path, ref, sub string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: path, Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: sub, Readonly: true}
}

func mountTable(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An image is a volume of two containers. It is read-only whatever the request says, the status names what is mounted, and
// the image cannot be removed until the containers have ended.
// rows: M-11, M-12, M-13, M-14, M-15, M-16, M-17, IM-05, GAP-10, X-5, P-123, P-123b, P-124, P-124a
func TestImageVolume(t *testing.T) {
	ours(t)
	p := newPod(t)
	id := pull(t, volumeImage)
	byDigest := imageStatus(t, volumeImage).RepoDigests[0]
	before := mountTable(t)
	writable := imageAt("/writable", id, "")
	writable.Readonly = false
	a := p.start(asleep(), mounts(imageAt("/image", volumeImage, ""), writable, imageAt("/sub", volumeImage, "dir")))
	b := p.start(asleep(), mounts(imageAt("/image", volumeImage, "")))
	equal(t, "mounts on the node", mountTable(t), before)
	equal(t, "files", a.sh("cat /image/file /image/dir/file /sub/file"), "1\n2\n2")
	equal(t, "files in the other container", b.sh("cat /image/file"), "1")
	equal(t, "what can be written", a.sh("for d in /image /writable /sub; do touch $d/x 2>/dev/null && echo $d; done; true"), "")
	for i, m := range a.status().Mounts {
		equal(t, "image of the mount", m.GetImage().GetImage(), id)
		equal(t, "digest of the mount", m.GetImage().GetImageRef(), byDigest)
		equal(t, "sub path", m.ImageSubPath, []string{"", "", "dir"}[i])
	}
	remove := func() error {
		_, err := n.Images.RemoveImage(p.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: volumeImage}})
		return err
	}
	refused(t, remove(), codes.FailedPrecondition, id) // by one of the two
	a.stop(0)
	a.remove()
	refused(t, remove(), codes.FailedPrecondition, id, b.id[:8])
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Errorf("remove the image once the pod is stopped: %v", err)
	}
}

// An artifact is a volume of files under their titles, which nobody can change or execute; no container runs it.
// rows: M-18, M-19, P-129, P-130, P-130a
func TestArtifactVolume(t *testing.T) {
	ours(t)
	const ref = "docker.io/edge/artifact:v1"
	p := newPod(t)
	id := pull(t, ref)
	equal(t, "image of the tag", imageStatus(t, ref).Id, id)
	c := p.start(asleep(), mounts(imageAt("/artifact", ref, ""), imageAt("/sub", id, "dir")))
	equal(t, "a file", c.sh("cat /artifact/model.txt"), "an artifact, not an image")
	untitled := digest.FromString("untitled").Encoded()
	equal(t, "all files", c.sh("cd /artifact && find . -type f | sort | xargs"), "./"+untitled+" ./dir/run ./model.txt")
	equal(t, "modes", c.sh("stat -c %a:%u:%g /artifact/* /sub/run | sort -u | xargs"), "444:0:0 755:0:0")
	r, err := c.exec("/sub/run")
	if err == nil && r.ExitCode == 0 {
		t.Errorf("a file was executed: %s", r.Stdout)
	}
	equal(t, "what can be written", c.sh("for d in /artifact /artifact/dir /sub; do touch $d/x 2>/dev/null && echo $d; done; echo x 2>/dev/null > /sub/run && echo it; true"), "")
	_, err = p.tryCreate(image(ref), asleep())
	refused(t, err, codes.InvalidArgument, "artifact")
	remove := func() error {
		_, err := n.Images.RemoveImage(p.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return err
	}
	refused(t, remove(), codes.FailedPrecondition, id, c.id[:8])
	restart(t, n, (*node.Node).Kill) // it is found again
	equal(t, "a file after a restart", c.sh("cat /artifact/model.txt"), "an artifact, not an image")
	another := p.start(asleep(), mounts(imageAt("/artifact", id, "")))
	equal(t, "a file of another container", another.sh("cat /artifact/model.txt"), "an artifact, not an image")
	for _, c := range []*container{c, another} {
		c.stop(0)
		c.remove()
	}
	if err := remove(); err != nil {
		t.Errorf("remove the artifact: %v", err)
	}
}

// What cannot be mounted is an error that begins as the kubelet expects it, and leaves nothing.
// rows: M-11, M-13, D-52, K-04, P-123a, P-125, P-126, P-127, P-128a
func TestImageVolumeRefused(t *testing.T) {
	ours(t)
	pull(t, volumeImage)
	t.Cleanup(func() { removeImage(t, volumeImage) })
	p := newPod(t)
	hostPath := imageAt("/i", volumeImage, "")
	hostPath.HostPath = "/tmp"
	shared := imageAt("/i", volumeImage, "")
	shared.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	handler := imageAt("/i", volumeImage, "")
	handler.Image.RuntimeHandler = "nosuch"
	for _, tc := range []struct {
		mount *runtimeapi.Mount
		code  codes.Code
		name  string
		plain bool // without the prefix: the request contradicts itself
	}{
		{imageAt("/i", "docker.io/edge/not-pulled:v1", ""), codes.NotFound, "not-pulled", false},
		{imageAt("/i", volumeImage, "missing"), codes.InvalidArgument, "missing", false},
		{imageAt("/i", volumeImage, "file"), codes.InvalidArgument, "not a directory", false},
		{imageAt("/i", volumeImage, "../x"), codes.InvalidArgument, "image_sub_path", false},
		{imageAt("/i", volumeImage, "/dir"), codes.InvalidArgument, "image_sub_path", false},
		{shared, codes.InvalidArgument, "propagation", false},
		{hostPath, codes.InvalidArgument, "host_path", true},
		{handler, codes.InvalidArgument, "config.mounts[0].image.runtime_handler", true},
	} {
		_, err := p.tryCreate(asleep(), mounts(tc.mount))
		refused(t, err, tc.code, tc.name)
		if text := status.Convert(err).Message(); strings.HasPrefix(text, "ImageVolumeMountFailed") == tc.plain {
			t.Errorf("message %q", text)
		}
	}
}

// In a user namespace the files belong to the users of the container that they belong to in the image, also when the
// kubelet gives the mapping with the mount.
// rows: M-09, P-128b
func TestImageVolumeInUserNamespace(t *testing.T) {
	ours(t)
	pull(t, volumeImage)
	t.Cleanup(func() { removeImage(t, volumeImage) })
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 500000, Length: 65536}}
	userns := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns })
	mapped := imageAt("/mapped", busybox, "bin")
	mapped.UidMappings, mapped.GidMappings = ids, ids
	c := p.start(asleep(), mounts(imageAt("/i", volumeImage, "dir"), mapped),
		security(func(s *securityContext) { s.NamespaceOptions.UsernsOptions = userns }))
	equal(t, "owners", c.sh("stat -c %u:%g /i /i/file /mapped /mapped/sh"), "0:0\n0:0\n0:0\n0:0")

	other := imageAt("/i", volumeImage, "")
	other.UidMappings = []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 700000, Length: 65536}}
	other.GidMappings = ids
	_, err := p.tryCreate(asleep(), mounts(other), security(func(s *securityContext) { s.NamespaceOptions.UsernsOptions = userns }))
	refused(t, err, codes.InvalidArgument, "uidMappings")
}

// A daemon that was killed still knows which images are mounted, and lets them go with their containers.
// rows: M-16
func TestImageVolumeOutlivesTheDaemon(t *testing.T) {
	ours(t)
	p := newPod(t)
	pull(t, volumeImage)
	c := p.start(asleep(), mounts(imageAt("/i", volumeImage, "")))
	restart(t, n, (*node.Node).Kill)
	equal(t, "file", c.sh("cat /i/file"), "1")
	_, err := n.Images.RemoveImage(p.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: volumeImage}})
	refused(t, err, codes.FailedPrecondition, c.id[:8])
	c.stop(0)
	c.remove()
	removeImage(t, volumeImage)
}
