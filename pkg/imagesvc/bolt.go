package imagesvc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// boltTimeout is how long to wait for the lock of a database file: another process has it.
const boltTimeout = 5 * time.Second

// errDamaged marks a database that can never be read again, as opposed to one that cannot be opened now.
var errDamaged = errors.New("the database is damaged")

// openBolt opens a bolt database and checks it page by page (a few milliseconds
// for some hundred images). bbolt panics where it meets a damaged page, and
// a file that was cut off ends in a memory fault: both become errDamaged here, before anything depends on it.
func openBolt(path string) (db *bolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("%s: %w: %v", path, errDamaged, r)
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: boltTimeout, NoStatistics: true})
	var sys *fs.PathError
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s is locked by another process, stop it first: %w", path, errdefs.ErrUnavailable)
	case errors.As(err, &sys):
		return nil, fmt.Errorf("opening %s: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	if err := db.View(checkBolt); err != nil {
		return nil, joinClose(fmt.Errorf("%s: %w: %w", path, errDamaged, err), db.Close())
	}
	return db, nil
}

// checkBolt reads every page. A file shorter than what its pages claim is caught first, for touching the missing end
// is a fault in a goroutine of bbolt's, which nobody could recover.
func checkBolt(tx *bolt.Tx) error {
	st, err := os.Stat(tx.DB().Path())
	if err != nil {
		return err
	}
	if st.Size() < tx.Size() {
		return fmt.Errorf("%d bytes long where %d are in use", st.Size(), tx.Size())
	}
	var first error
	for err := range tx.Check() {
		if first == nil {
			first = err
		}
	}
	return first
}
