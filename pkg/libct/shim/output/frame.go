package output

import (
	"bytes"
	"time"
)

// kind is a stream's number: the index into everything that is kept per stream.
type kind int

const (
	stdout kind = iota
	stderr
)

func (k kind) String() string { return [...]string{"stdout", "stderr"}[k] }

const (
	// maxContent in bytes is the most that a line of the log carries, as kubelet and log agents expect it.
	maxContent = 16384

	// stampFormat is RFC 3339 with all nine digits, so that every header has the same length. The zone is UTC: always "Z".
	stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

	headerLen = len("2006-01-02T15:04:05.000000000Z stdout F ")
	tagAt     = headerLen - 2
)

// header is what a line of the log begins with.
type header [headerLen]byte

func (h *header) set(t time.Time, k kind) {
	b := append(t.UTC().AppendFormat(h[:0], stampFormat), ' ')
	b = append(b, k.String()...)
	_ = append(b, " F "...)
}

// frame appends src to dst as lines of the log, as far as dst has room, and
// returns what it did not get to. A dst that is empty must have room for a line
// of maxContent. The last line is a part (P) if src does not end with a newline.
func frame(dst, src []byte, h *header) (lines, rest []byte) {
	for len(src) > 0 {
		tag, n, skip := byte('F'), bytes.IndexByte(src[:min(len(src), maxContent+1)], '\n'), 1
		if n < 0 {
			tag, n, skip = 'P', min(len(src), maxContent), 0
		}
		if cap(dst)-len(dst) < headerLen+n+1 {
			break
		}
		h[tagAt] = tag
		dst = append(dst, h[:]...)
		dst = append(dst, src[:n]...)
		dst = append(dst, '\n')
		src = src[n+skip:]
	}
	return dst, src
}

// count says how much output is in lines that frame made: its bytes and the newlines among them.
func count(lines []byte) (size, newlines int64) {
	for len(lines) > 0 {
		n := bytes.IndexByte(lines, '\n')
		size += int64(n - headerLen)
		if lines[tagAt] == 'F' {
			size, newlines = size+1, newlines+1
		}
		lines = lines[n+1:]
	}
	return size, newlines
}

// unfinished says whether the last of the lines is a part.
func unfinished(lines []byte) bool {
	last := bytes.LastIndexByte(lines[:len(lines)-1], '\n') + 1
	return lines[last+tagAt] == 'P'
}
