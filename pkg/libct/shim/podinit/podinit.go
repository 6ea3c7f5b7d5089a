// Package podinit is the program that is pid 1 of a pod whose containers share
// one PID namespace: a few kilobytes of C without a library, embedded here as
// Binary, since a process that does nothing should cost next to nothing. The
// shim writes it to a file or memfd and executes it; no other pod needs it.
//
// It is told by its arguments what to do:
//
//	podinit pause KIND...
//
// starts pid 1. Descriptors 4, 5, ... are namespaces, joined in that order; the
// KINDs ("user", "network", "ipc", "uts", ...) name them. A user namespace must be the
// first and own the others. Pid 1 is made in new PID and mount namespaces as a
// child of the caller, not of the program (CLONE_PARENT), and the program
// writes its pid in the caller's namespace, as text, to descriptor 3 and exits
// with 0. If something fails it writes "error: <what>: errno <number>", exits with 1,
// and nothing is left.
//
// Pid 1 has its own session, the empty read-only directory as its root, no descriptors,
// no capabilities, no way to get some, and the name "pause". It is user and
// group 0 of the user namespace joined, else 65534. It reaps what the pod orphans,
// and exits with 0 at SIGTERM or SIGINT. Its cgroup and oom_score_adj are those
// that the program was started with.
//
//	podinit hold
//
// waits for the end of stdin and exits with 0. It is started in new namespaces, which
// the caller pins by way of /proc/PID/ns before it closes stdin.
package podinit

import _ "embed" // for Binary

//go:generate gcc -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -fno-pie -static -nostdlib -no-pie -s -Wl,--build-id=none,-z,noseparate-code,-z,noexecstack -o init.bin init.c

// Binary is the program for this machine. "go generate" makes it from init.c.
//
//go:embed init.bin
var Binary []byte
