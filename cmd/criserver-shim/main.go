// Command criserver-shim is the parent of the node's containers. The daemon
// starts it; see package shim.
package main

import (
	"runtime"

	"github.com/criserver/criserver/pkg/libct/shim"
)

// The main goroutine stays on the main thread: see shim.Main.
func init() { runtime.LockOSThread() }

func main() { shim.Main() }
