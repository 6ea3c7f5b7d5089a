module github.com/seccomp/libseccomp-golang

go 1.26.0

require (
	github.com/containerd/errdefs v1.0.0
	github.com/moby/profiles/seccomp v0.2.3
	github.com/opencontainers/runtime-spec v1.3.0
	golang.org/x/sys v0.48.0
)
