package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFiles is the largest number of files that go along with one frame.
const MaxFiles = 16

// headerSize is that of the length before each frame.
const headerSize = 4

// Conn is one end of a connection: a call at the daemon's end, a caller at the
// shim's. One goroutine may send while another receives.
type Conn struct{ c *net.UnixConn }

// NewConn frames messages on c, which it then owns.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c} }

// Dial connects to the shim's socket.
func Dial(path string) (*Conn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return NewConn(c), nil
}

// Send writes one message. The files stay the caller's.
func (c *Conn) Send(msg any, files ...*os.File) error {
	body, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("message of %d bytes: the limit is %d", len(body), MaxFrame)
	}
	oob, err := rights(files)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, headerSize+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	n, _, err := c.c.WriteMsgUnix(frame, oob, nil)
	runtime.KeepAlive(files)
	if err == nil && n < len(frame) { // the files went with the first piece
		_, err = c.c.Write(frame[n:])
	}
	return err
}

// rights builds the control message that passes files. Their descriptors are
// taken by Control and not by Fd, which would make them blocking for all.
func rights(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	if len(files) > MaxFiles {
		return nil, fmt.Errorf("%d files in one message: the limit is %d", len(files), MaxFiles)
	}
	fds := make([]int, 0, len(files))
	for _, f := range files {
		rc, err := f.SyscallConn()
		if err == nil {
			err = rc.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		}
		if err != nil {
			return nil, fmt.Errorf("pass file: %w", err)
		}
	}
	return unix.UnixRights(fds...), nil
}

// Recv reads one message into msg and returns the files that came along, which
// are the caller's. After an error the connection is of no more use; io.EOF says
// that the other end hung up between two messages.
func (c *Conn) Recv(msg any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			CloseFiles(files)
			files = nil
		}
	}()
	var header [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(header[:], oob)
	if err != nil {
		return nil, err
	}
	if files, err = received(oob[:oobn]); err != nil {
		return files, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, fmt.Errorf("more than %d files in one message", MaxFiles)
	}
	if _, err = io.ReadFull(c.c, header[n:]); err != nil {
		return files, unexpected(err)
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > MaxFrame {
		return files, fmt.Errorf("message of %d bytes: the limit is %d", size, MaxFrame)
	}
	body := make([]byte, size)
	if _, err = io.ReadFull(c.c, body); err != nil {
		return files, unexpected(err)
	}
	if err = json.Unmarshal(body, msg); err != nil {
		return files, fmt.Errorf("decode message: %w", err)
	}
	return files, nil
}

// unexpected is for a connection that ends within a message.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// received opens the files of a control message.
func received(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, fmt.Errorf("parse passed files: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// WaitHangup blocks until the other end has closed the connection, or sends
// what it must not. It ends with the connection.
func (c *Conn) WaitHangup() {
	var b [1]byte
	_, _ = c.c.Read(b[:])
}

// SetDeadline bounds all that is sent and received; the zero time lifts it.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// File returns a duplicate of the connection's descriptor.
func (c *Conn) File() (*os.File, error) { return c.c.File() }

// Close hangs up.
func (c *Conn) Close() error { return c.c.Close() }

// CloseFiles closes every file that is not nil.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
