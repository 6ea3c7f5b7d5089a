// Package store keeps records: one small file for each object, replaced whole.
// It knows nothing of what the records mean.
//
// A file is one header line, "criserver-record 1 <crc32c of the rest>", and the
// record as JSON. It is written beside its place and renamed into it, so that a
// reader sees the old record or the new one. There is no fsync: a killed
// process loses nothing, and what a power cut could lose described processes
// that the power cut ended. A file that does not pass its checksum is moved to
// quarantine/ and reported; it is never fatal and never deleted.
package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Kind is a directory of records.
type Kind string

// The kinds of records.
const (
	Pods       Kind = "pods"
	Containers Kind = "containers"
)

const (
	magic      = "criserver-record 1 "
	suffix     = ".json"
	tmpPrefix  = ".tmp-"
	quarantine = "quarantine"
	// maxRecord is the largest file in bytes that Load reads: a request is at most 16 MiB, and JSON may double it.
	maxRecord = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Store is a directory of records. It is safe for concurrent use as long as no
// two writers write the same record at the same time.
type Store struct{ dir string }

// Open opens or makes the store in dir and removes what interrupted writes left.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, k := range []Kind{Pods, Containers, quarantine} {
		if err := os.MkdirAll(filepath.Join(dir, string(k)), 0o700); err != nil {
			return nil, fmt.Errorf("open record store: %w", err)
		}
		left, err := filepath.Glob(filepath.Join(dir, string(k), tmpPrefix+"*"))
		if err != nil {
			return nil, fmt.Errorf("open record store %s: %w", dir, err)
		}
		for _, f := range left {
			if err := os.Remove(f); err != nil {
				return nil, fmt.Errorf("remove an interrupted write: %w", err)
			}
		}
	}
	return s, nil
}

func (s *Store) path(k Kind, id string) string {
	return filepath.Join(s.dir, string(k), id+suffix)
}

// Put replaces the record of an object. rec is encoded as JSON.
func (s *Store) Put(k Kind, id string, rec any) error {
	body, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record %s/%s: %w", k, id, err)
	}
	head := fmt.Sprintf("%s%08x\n", magic, crc32.Checksum(body, castagnoli))
	tmp := filepath.Join(s.dir, string(k), tmpPrefix+id)
	if err := os.WriteFile(tmp, append([]byte(head), body...), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write record %s/%s: %w", k, id, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, s.path(k, id)); err != nil {
		return fmt.Errorf("write record %s/%s: %w", k, id, err)
	}
	return nil
}

// Delete forgets a record, if there is one.
func (s *Store) Delete(k Kind, id string) error {
	if err := os.Remove(s.path(k, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete record %s/%s: %w", k, id, err)
	}
	return nil
}

// Load returns every record of a kind by its object's ID. What cannot be read
// is moved to quarantine/ and told in damaged, one error a file.
func (s *Store) Load(k Kind) (records map[string]json.RawMessage, damaged []error, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, string(k)))
	if err != nil {
		return nil, nil, fmt.Errorf("read records: %w", err)
	}
	records = make(map[string]json.RawMessage, len(entries))
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		body, err := read(s.path(k, id))
		if err != nil {
			damaged = append(damaged, s.Quarantine(k, id, err))
			continue
		}
		records[id] = body
	}
	return records, damaged, nil
}

// Quarantine puts a record aside because of cause and returns an error that says so.
func (s *Store) Quarantine(k Kind, id string, cause error) error {
	to := filepath.Join(s.dir, quarantine, string(k)+"-"+id+suffix)
	if err := os.Rename(s.path(k, id), to); err != nil {
		return fmt.Errorf("record %s/%s is damaged (%w) and cannot be put aside: %w", k, id, cause, err)
	}
	return fmt.Errorf("record %s/%s is damaged and was put aside as %s: %w", k, id, to, cause)
}

func read(file string) (json.RawMessage, error) {
	if fi, err := os.Stat(file); err != nil {
		return nil, err
	} else if fi.Size() > maxRecord {
		return nil, fmt.Errorf("it has %d bytes, more than %d", fi.Size(), maxRecord)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	head, body, _ := bytes.Cut(b, []byte("\n"))
	sum, ok := strings.CutPrefix(string(head), magic)
	if !ok {
		return nil, errors.New("it does not begin with " + strconv.Quote(magic))
	}
	if want, err := strconv.ParseUint(sum, 16, 32); err != nil || uint32(want) != crc32.Checksum(body, castagnoli) {
		return nil, errors.New("its checksum does not match")
	}
	return body, nil
}
