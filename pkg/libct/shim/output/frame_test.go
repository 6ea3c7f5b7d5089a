package output

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 13, 0, 0, 120, time.FixedZone("somewhere", 3600))

func head(k kind, tag string) string {
	return fmt.Sprintf("2026-01-02T12:00:00.000000120Z %s %s ", k, tag)
}

// frameAll frames pieces one after the other, each into as many buffers of room bytes as it takes.
func frameAll(k kind, room int, pieces ...[]byte) []byte {
	var h header
	h.set(noon, k)
	var all []byte
	for _, p := range pieces {
		for len(p) > 0 {
			var lines []byte
			lines, p = frame(make([]byte, 0, room), p, &h)
			all = append(all, lines...)
		}
	}
	return all
}

func TestFrame(t *testing.T) {
	long := strings.Repeat("x", maxContent)
	for _, c := range []struct {
		name   string
		pieces []string
		want   string
	}{
		{"nothing", nil, ""},
		{"a line", []string{"hello\n"}, "F hello\n"},
		{"lines", []string{"a\nb\n\nc\n"}, "F a\nF b\nF \nF c\n"},
		{"unfinished", []string{"a\nb"}, "F a\nP b\n"},
		{"unfinished, then its end", []string{"a", "b\nc\n"}, "P a\nF b\nF c\n"},
		{"just the newline is missing", []string{"a", "\n"}, "P a\nF \n"},
		{"carriage returns stay", []string{"a\r\nb\rc\n"}, "F a\r\nF b\rc\n"},
		{"binary", []string{"\x00\xff\xc3\n\xa9\n"}, "F \x00\xff\xc3\nF \xa9\n"},
		{"looks like a line", []string{head(stdout, "F") + "x\n"}, "F " + head(stdout, "F") + "x\n"},
		{"as long as may be", []string{long + "\n"}, "F " + long + "\n"},
		{"as long as may be, unfinished", []string{long, "\n"}, "P " + long + "\nF \n"},
		{"one byte too long", []string{long + "y\n"}, "P " + long + "\nF y\n"},
		{"much too long", []string{long + long + "y"}, "P " + long + "\nP " + long + "\nP y\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, k := range []kind{stdout, stderr} {
				var pieces [][]byte
				for _, p := range c.pieces {
					pieces = append(pieces, []byte(p))
				}
				want := regexp.MustCompile(`(?m)^([FP]) `).ReplaceAllStringFunc(c.want, func(s string) string { return head(k, s[:1]) })
				if c.name == "looks like a line" {
					want = head(k, "F") + strings.Join(c.pieces, "")
				}
				if got := frameAll(k, headerLen+maxContent+1, pieces...); string(got) != want {
					t.Errorf("got %.200q, want %.200q", got, want)
				}
			}
		})
	}
}

// parsed is a line of the log taken apart.
type parsed struct {
	at      time.Time
	stream  string
	part    bool
	content string
}

// parseLog takes a log apart and fails the test unless every line is well formed.
func parseLog(t testing.TB, log []byte) []parsed {
	t.Helper()
	if len(log) == 0 {
		return nil
	}
	if log[len(log)-1] != '\n' {
		t.Fatalf("the log ends within a line: %.100q", log[max(0, len(log)-100):])
	}
	var lines []parsed
	for i, line := range strings.Split(string(log[:len(log)-1]), "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || len(line) < headerLen || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "P" && f[2] != "F") || len(f[3]) > maxContent {
			t.Fatalf("line %d of %d is malformed: %.200q", i+1, bytes.Count(log, newline), line)
		}
		at, err := time.Parse(stampFormat, f[0])
		if err != nil || !strings.HasSuffix(f[0], "Z") {
			t.Fatalf("line %d: time %q: %v", i+1, f[0], err)
		}
		lines = append(lines, parsed{at, f[1], f[2] == "P", f[3]})
	}
	return lines
}

// written joins the content of a stream again.
func written(lines []parsed, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if l.stream == stream {
			b.WriteString(l.content)
			if !l.part {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte("a\nbc\n\nd"), uint16(3), uint16(0))
	f.Add(bytes.Repeat([]byte("x"), 3*maxContent+7), uint16(maxContent-1), uint16(100))
	f.Add(append(bytes.Repeat([]byte("y"), maxContent), '\n'), uint16(maxContent), uint16(9))
	f.Fuzz(func(t *testing.T, in []byte, cut, room uint16) {
		at := min(int(cut), len(in))
		log := frameAll(stderr, headerLen+maxContent+1+int(room), in[:at], in[at:])
		lines := parseLog(t, log)
		if got := written(lines, "stderr"); got != string(in) {
			t.Fatalf("joined lines differ: %d bytes of %d", len(got), len(in))
		}
		if size, newlines := count(log); size != int64(len(in)) || newlines != int64(bytes.Count(in, newline)) {
			t.Fatalf("count says %d bytes, %d newlines", size, newlines)
		}
		if len(in) > 0 && unfinished(log) != (in[len(in)-1] != '\n') {
			t.Fatalf("unfinished is wrong")
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	data := bytes.Repeat(append(bytes.Repeat([]byte("x"), 127), '\n'), (64<<10)/128)
	p := pieces.Get().(*piece)
	p.header.set(noon, stdout)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		frame(p.lines[:0], data, &p.header)
	}
}
