package main

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/pkg/config"
	"github.com/criserver/criserver/pkg/imagesvc"
)

// reload reads the configuration again and puts in force what can change while pods run. After an error nothing has changed.
func (s *server) reload() {
	read, err := s.load()
	if err != nil {
		s.log.WithError(err).Error("The configuration was not reloaded")
		return
	}
	old := s.config.Load()
	live := *old
	live.LogLevel, live.LogFormat, live.Image = read.LogLevel, read.LogFormat, read.Image
	s.config.Store(&live)
	setLog(s.log.Logger, &live)
	s.images.Reload(s.imageOptions(&live))
	s.log.WithField("changed", strings.Join(config.Changed(old, &live), " ")).Info("Configuration reloaded")
	if waiting := config.Changed(&live, read); len(waiting) > 0 {
		s.log.WithField("keys", strings.Join(waiting, " ")).Warn("These changes of the configuration need a restart of criserver")
	}
}

func setLog(l *logrus.Logger, c *config.Config) {
	level, _ := logrus.ParseLevel(c.LogLevel) // config has checked it
	l.SetLevel(level)
	if c.LogFormat == "json" {
		l.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		l.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: time.RFC3339Nano})
	}
}

func (s *server) imageOptions(c *config.Config) imagesvc.Options {
	return imagesvc.Options{
		Root:            filepath.Join(c.Root, "images"),
		RegistryDir:     c.Image.HostsDir(),
		Parallel:        c.Image.Parallel,
		ProgressTimeout: time.Duration(c.Image.ProgressTimeout),
		Pinned:          c.Image.Pinned,
		Log:             s.log.WithField("component", "images"),
	}
}
