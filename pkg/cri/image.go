package cri

import (
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/imagesvc"
)

func imageItem(i imagesvc.Image) *runtimeapi.Image {
	image := &runtimeapi.Image{
		Id:          string(i.ID),
		RepoTags:    i.Tags,
		RepoDigests: i.Digests,
		Size:        uint64(max(i.Size, 0)),
		Spec:        &runtimeapi.ImageSpec{Image: string(i.ID), Annotations: i.Annotations},
		Pinned:      i.Pinned,
	}
	// The kubelet refuses to run an image as root by these (runAsNonRoot): a number is a uid, anything else a name.
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		image.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		image.Username = user
	}
	return image
}

func filesystem(u imagesvc.Usage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  nanos(u.At),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Path},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}
