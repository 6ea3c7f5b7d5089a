// Package execinit is the program by which a further process comes into a
// running container: a few kilobytes of C without a library, embedded here as
// Binary. It does what the init of libcontainer does for an exec, without Go's
// runtime, whose start and end are most of the cost of that one.
//
// The program is started with the streams of the process as descriptors 0, 1 and
// 2, a stream socket as 3, a pidfd of the container's first process as 4, itself as
// 5 and, if the process is to have a terminal, a socket as 6, to which it passes
// the terminal's master. It reads an Order from descriptor 3 and answers with
// Reports. The program joins the PID namespace and makes, by CLONE_PARENT, a
// child of its parent, which joins the rest and becomes the command; then it exits
// with 0. The other end of the socket comes to its end when the command has been
// executed, or could not be.
//
// What it is not told it does not do: an Order has the container's settings and
// those of the process merged, names looked up, and the environment in its final form
// but for HOME. The order of the steps is libcontainer's wherever it can be seen.
// Beyond that, no descriptor but 0 to 3 is open when a path is followed that
// the container or its image could have chosen, but for that of the terminal, which may
// not lead through descriptors.
package execinit

import _ "embed" // for Binary

//go:generate gcc -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -fno-pie -static -nostdlib -no-pie -s -Wl,--build-id=none,-z,noseparate-code,-z,noexecstack -o init.bin init.c

// Binary is the program for this machine. "go generate" makes it from init.c.
//
//go:embed init.bin
var Binary []byte
