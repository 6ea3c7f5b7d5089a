package sandbox

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
)

func withVolume(cfg *runtimeapi.ContainerConfig, ref string) *runtimeapi.ContainerConfig {
	cfg.Mounts = append(cfg.Mounts, &runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: ref}})
	return cfg
}

func TestImageVolumeIsKept(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	id, err := n.CreateContainer(context.Background(), pod, withVolume(containerConfig("c"), "image"))
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string, uses int, user string) {
		t.Helper()
		if got := n.images.used(); got != uses {
			t.Errorf("%s: %d uses of the image, want %d", when, got, uses)
		}
		if got := n.VolumeUser(testImage); got != user {
			t.Errorf("%s: mounted by %q, want %q", when, got, user)
		}
	}
	check("created", 2, id)
	n.reopen()
	check("after a restart", 2, id)
	if v := n.container(id).Volumes; len(v) != 1 || v[0].ID != testImage || v[0].Ref != testImage.String() {
		t.Errorf("volumes %+v", v)
	}
	n.start(id)
	if err := n.StopContainer(context.Background(), id, 0); err != nil {
		t.Fatal(err)
	}
	check("ended", 2, "")
	if err := n.RemoveContainer(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	check("removed", 0, "")
}

func TestImageVolumeFails(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	n.fake.imagesErr = errdefs.ErrInvalidArgument
	for _, ref := range []string{"image", "not-here"} {
		_, err := n.CreateContainer(context.Background(), pod, withVolume(containerConfig("c"), ref))
		var volume *spec.ImageVolumeError
		if !errors.As(err, &volume) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	n.eventually("no use is left", func() bool { return n.images.used() == 0 && len(n.Containers()) == 0 })
}
