package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/fsnotify/fsnotify"
)

const (
	debounce     = 50 * time.Millisecond // a file is often written in pieces
	recheck      = 5 * time.Second       // for what a watch cannot see, and how often plugins are asked for their status
	retryStatus  = time.Second           // how often while they are not ready
	statusBudget = 10 * time.Second      // for their answer
)

// watcher reloads the configuration when its directory changes or is replaced by another one.
type watcher struct {
	n      *Network
	notify *fsnotify.Watcher
	dir    os.FileInfo // what is watched; nil: nothing, since the directory is not there
}

func newWatcher(n *Network) (*watcher, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("cni: watch %s: %w", n.confDir, err)
	}
	w := &watcher{n: n, notify: notify}
	if err := notify.Add(filepath.Dir(n.confDir)); err == nil {
		err = w.follow()
	}
	if err != nil {
		notify.Close()
		return nil, fmt.Errorf("cni: watch %s: %w", n.confDir, err)
	}
	return w, nil
}

// follow watches the directory that has the name now.
func (w *watcher) follow() error {
	info, err := os.Stat(w.n.confDir)
	if errors.Is(err, os.ErrNotExist) {
		w.dir = nil
		return nil
	}
	if err != nil || (w.dir != nil && os.SameFile(info, w.dir)) {
		return err
	}
	_ = w.notify.Remove(w.n.confDir) // of the directory that had the name before, if the watch outlived it
	if err := w.notify.Add(w.n.confDir); err != nil {
		return err
	}
	w.dir = info
	return nil
}

func (w *watcher) run(ctx context.Context) {
	defer w.notify.Close()
	again := time.NewTicker(recheck)
	defer again.Stop()
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-w.notify.Events:
			if e.Name == w.n.confDir || filepath.Dir(e.Name) == w.n.confDir {
				due = time.After(debounce)
			}
		case err := <-w.notify.Errors:
			w.n.log.WithError(err).Warn("cni: watch of the configuration directory; reading it again")
			due = time.After(debounce)
		case <-again.C:
			due = time.After(0)
		case <-due:
			due = nil
			if err := w.follow(); err != nil {
				w.n.log.WithError(err).Warnf("cni: watch %s", w.n.confDir)
			}
			w.n.reload()
		}
	}
}

// reload reads the configuration and puts it in force if it can be used.
func (n *Network) reload() {
	conf, err := load(n.confDir)
	if err == nil && conf == nil && n.builtin {
		conf, err = n.defaultConfig()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		if n.problem == nil || n.problem.Error() != err.Error() {
			n.log.WithError(err).Error("cni: the configuration cannot be used; the one before it stays in force")
		}
		n.problem = err
		return
	}
	n.problem = nil
	if same(conf, n.conf) {
		return
	}
	n.conf, n.unready = conf, nil
	if conf == nil {
		n.log.Warnf("cni: no configuration in %s", n.confDir)
		return
	}
	n.log.WithField("network", conf.list.Name).WithField("file", conf.source).Info("cni: configuration in force")
	if conf.speaksStatus() {
		n.unready = fmt.Errorf("cni: the plugins of network %q have not answered STATUS yet: %w", conf.list.Name, errdefs.ErrUnavailable)
		select {
		case n.changed <- struct{}{}:
		default: // the poller has yet to see an earlier change
		}
	}
}

func same(a, b *config) bool {
	return a == b || a != nil && b != nil && a.source == b.source && bytes.Equal(a.list.Bytes, b.list.Bytes)
}

// poll asks the plugins for their status (verb STATUS of CNI 1.1), so that Status need not wait for them.
func (n *Network) poll(ctx context.Context) {
	for {
		wait := recheck
		if conf := n.current(); conf != nil && conf.speaksStatus() {
			if err := n.askStatus(ctx, conf); err != nil {
				wait = retryStatus
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-time.After(wait):
		}
	}
}

func (n *Network) askStatus(ctx context.Context, conf *config) error {
	ctx, cancel := context.WithTimeout(ctx, statusBudget)
	defer cancel()
	err := n.bare.GetStatusNetworkList(ctx, conf.list)
	if err != nil {
		err = fmt.Errorf("cni: network %q is not ready: %w: %w", conf.list.Name, err, errdefs.ErrUnavailable)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conf == conf {
		n.unready = err
	}
	return err
}
