package cri

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/libct"
)

// kinds are the errors that have a gRPC code; the first that fits counts.
var kinds = []struct {
	is   func(error) bool
	code codes.Code
}{
	// What a command or a file of the image does wrong is nobody's request.
	{isStartError, codes.Unknown},
	// The caller's patience comes before what an operation says of how it was cut off.
	{errdefs.IsDeadlineExceeded, codes.DeadlineExceeded},
	{errdefs.IsCanceled, codes.Canceled},
	{errdefs.IsNotFound, codes.NotFound},
	{errdefs.IsInvalidArgument, codes.InvalidArgument},
	{errdefs.IsFailedPrecondition, codes.FailedPrecondition},
	{errdefs.IsAlreadyExists, codes.AlreadyExists},
	{errdefs.IsUnavailable, codes.Unavailable},
	{errdefs.IsNotImplemented, codes.Unimplemented},
	{errdefs.IsResourceExhausted, codes.ResourceExhausted},
	{errdefs.IsOutOfRange, codes.OutOfRange},
	{errdefs.IsAborted, codes.Aborted},
	{errdefs.IsConflict, codes.Aborted},
	{errdefs.IsPermissionDenied, codes.PermissionDenied},
	{errdefs.IsUnauthorized, codes.Unauthenticated},
	{errdefs.IsDataLoss, codes.DataLoss},
	{errdefs.IsInternal, codes.Internal},
}

func isStartError(err error) bool {
	var start *libct.StartError
	return errors.As(err, &start)
}

// toStatus gives an error its gRPC code. What has none of the kinds is Unknown: the caller may read it and try again.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, imagesvc.ErrRegistryUnavailable) {
		// The kubelet looks for this prefix, with the code Unknown, and shows it as the reason of the waiting container.
		return status.Errorf(codes.Unknown, "%v: %v", crierrors.ErrRegistryUnavailable, err)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	text := err.Error()
	var volume *spec.ImageVolumeError
	var rro *spec.RROUnsupportedError
	switch { // prefixes that the kubelet looks for, too
	case errors.As(err, &volume):
		text = fmt.Sprintf("%v: %v", crierrors.ErrImageVolumeMountFailed, err)
	case errors.As(err, &rro):
		text = fmt.Sprintf("%v: %v", crierrors.ErrRROUnsupported, err)
	}
	for _, kind := range kinds {
		if kind.is(err) {
			return status.Error(kind.code, text)
		}
	}
	return status.Error(codes.Unknown, text)
}

// unimplemented says in words that something is not served, with the code by which callers know to do without.
func unimplemented(what string) error { return fmt.Errorf("%s: %w", what, errdefs.ErrNotImplemented) }

// ignoreNotFound is for the calls that must succeed for what is not there (StopPodSandbox, RemovePodSandbox,
// StopContainer, RemoveContainer, RemoveImage: "must not return an error if it has already been removed").
func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
