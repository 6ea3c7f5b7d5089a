package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lock takes a directory for this process; it is free again when the returned file is closed, or the process ends.
func lock(dir, key string) (*os.File, error) {
	// Others may pass, for containers have files below, but not list.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "daemon.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			var pid [16]byte
			n, _ := f.Read(pid[:])
			return nil, fmt.Errorf("%s: the directory %s is in use by another criserver, pid %s: stop that one, or give this one other directories (--root, --state)",
				key, dir, strings.TrimSpace(string(pid[:n])))
		}
		return nil, fmt.Errorf("%s: lock %s: %w", key, f.Name(), err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return f, nil
}

// listen makes the socket, for root and its group alone, in place of one that nobody serves. Whoever connects before
// it is served waits.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	old := syscall.Umask(0o117) // so that it never exists with another mode; nothing else makes files yet
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chown(path, 0, 0); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// removeStale removes a socket that was left by a daemon that was killed.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen: %s is in the way and not a socket: remove it or choose another path (--listen)", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("listen: another program serves %s: stop it or choose another path (--listen)", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen: %s: is it in use? %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}
