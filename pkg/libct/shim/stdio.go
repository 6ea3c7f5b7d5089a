package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/shim/output"
)

// Names of a container's FIFOs in its directory.
const (
	stdinFIFO  = "stdin"
	stdoutFIFO = "stdout"
	stderrFIFO = "stderr"
)

// openStdio makes the FIFOs of a container, opens the shim's ends into its
// handles and gives the container's ends to the process. The FIFOs belong to the
// container's user, as host IDs, so that it can open /dev/stdout again.
//
// The container's end of stdout and stderr can be read, too: with no shim alive
// to read it the writer waits instead of being killed by SIGPIPE.
func (s *Shim) openStdio(c *container, p *libcontainer.Process, uid, gid int) (err error) {
	dir := s.dir(c.id)
	if c.Args.Stdin {
		path := filepath.Join(dir, stdinFIFO)
		if err := makeFIFO(path, uid, gid); err != nil {
			return err
		}
		if p.Stdin, c.stdin, err = openStdin(path); err != nil {
			return err
		}
	}
	var ends [2]*os.File
	for i, name := range []string{stdoutFIFO, stderrFIFO} {
		path := filepath.Join(dir, name)
		if err := makeFIFO(path, uid, gid); err != nil {
			return err
		}
		if c.reads[i], err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return err
		}
		if ends[i], err = openFile(path, unix.O_RDWR); err != nil {
			return err
		}
	}
	p.Stdout, p.Stderr = ends[0], ends[1]
	return nil
}

// closeStdio closes the container's ends, which the process has by now.
func closeStdio(p *libcontainer.Process) {
	for _, stream := range []any{p.Stdin, p.Stdout, p.Stderr} {
		if f, ok := stream.(*os.File); ok && f != nil {
			_ = f.Close()
		}
	}
}

func makeFIFO(path string, uid, gid int) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("mkfifo %s: %w", path, err)
	}
	if err := os.Lchown(path, uid, gid); err != nil {
		return fmt.Errorf("give FIFO to the container's user: %w", err)
	}
	return nil
}

// openFile opens without the os package's help, which would make every end
// nonblocking; the container's must not be.
func openFile(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openStdin opens both ends of a stdin FIFO. The reader is opened nonblocking, as
// there is no writer yet, and made blocking after.
func openStdin(path string) (read, write *os.File, err error) {
	if read, err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		return nil, nil, err
	}
	if write, err = openFile(path, unix.O_WRONLY|unix.O_NONBLOCK); err != nil {
		_ = read.Close()
		return nil, nil, err
	}
	if err := unix.SetNonblock(int(read.Fd()), false); err != nil {
		_, _ = read.Close(), write.Close()
		return nil, nil, fmt.Errorf("make stdin blocking: %w", err)
	}
	return read, write, nil
}

// openOutput starts to carry the container's output into a log.
func (c *container) openOutput(logPath string) (err error) {
	c.out, err = output.Open(output.Config{
		LogPath: logPath, Terminal: c.Args.Terminal,
		Stdout: c.reads[0], Stderr: c.reads[1], Log: c.log,
	})
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// continueOutput does it for a container that runs already: without the log, if
// that cannot be opened any more, since the container must not wait for a reader.
func (c *container) continueOutput() error {
	err := c.openOutput(c.Args.LogPath)
	if err == nil || c.Args.LogPath == "" {
		return err
	}
	c.log.WithError(err).Error("the log is lost")
	return c.openOutput("")
}

// console is the socket over which libcontainer's init passes the pty master.
type console struct{ ours, theirs *os.File }

func newConsole() (*console, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	return &console{os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")}, nil
}

func (c *console) close() { _, _ = c.ours.Close(), c.theirs.Close() }

// master receives the pty master. It was sent before the init reported that it
// is ready, so nothing is waited for.
func (c *console) master() (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096) // the terminal's path, of no use outside its mount namespace
	_, n, _, _, err := unix.Recvmsg(int(c.ours.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("receive terminal: no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("receive terminal: no descriptor came")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, fmt.Errorf("make terminal nonblocking: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pty"), nil
}

// peekTime bounds how long the last words of a process are waited for; they
// stand in the pipe by then.
const peekTime = 200 * time.Millisecond

// peek listens to a container's output from just before its command is
// executed, for the words with which libcontainer's init ends if it cannot be.
type peek struct {
	read   *os.File
	detach func()
}

func newPeek(terminal bool, out *output.Output) (*peek, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &peek{read: r}
	if terminal {
		_, p.detach = out.Attach(w, nil)
	} else {
		_, p.detach = out.Attach(nil, w)
	}
	return p, nil
}

// words returns the beginning of what was written.
func (p *peek) words() string {
	p.detach()
	_ = p.read.SetReadDeadline(time.Now().Add(peekTime))
	b := make([]byte, 4096)
	n, _ := p.read.Read(b)
	return string(b[:n])
}

func (p *peek) close() {
	p.detach()
	_ = p.read.Close()
}
