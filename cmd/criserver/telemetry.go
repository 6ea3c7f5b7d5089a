package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/criserver/criserver/pkg/config"
	"github.com/criserver/criserver/pkg/telemetry"
)

// debugSocket is where the daemon tells an administrator of its work.
func debugSocket(c *config.Config) string { return filepath.Join(c.State, "debug.sock") }

// openTelemetry begins to tell, on a socket for root alone and, if that is configured, the metrics over TCP.
func (s *server) openTelemetry(ctx context.Context, c *config.Config) (*telemetry.Telemetry, error) {
	t, err := telemetry.New(ctx, telemetry.Options{
		Version: version, Endpoint: c.Telemetry.Endpoint, Ratio: c.Telemetry.Ratio, Log: s.log.WithField("component", "telemetry"),
	})
	if err != nil {
		return nil, err
	}
	s.onClose("telemetry", t.Close)
	l, err := listen(debugSocket(c))
	if err != nil {
		return nil, err
	}
	s.serveHTTP("debug socket", l, t.Handler())
	if c.Telemetry.Metrics == "" {
		return t, nil
	}
	if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", c.Telemetry.Metrics); err != nil {
		return nil, fmt.Errorf("telemetry.metrics: %w", err)
	}
	s.serveHTTP("metrics", l, telemetry.MetricsHandler())
	return t, nil
}

// serveHTTP serves until the daemon closes. A client that is slow to ask is dropped.
func (s *server) serveHTTP(name string, l net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	s.onClose(name, func() error {
		err := srv.Close()
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	})
}

// traceCommand prints what the daemon keeps.
func traceCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "trace [POD]",
		Short: "Print the stages of the last RPCs about a pod, or about all, with their times in milliseconds",
		Long: "Print the stages of the last RPCs that made, changed or ended a pod or its containers: of each stage when it\n" +
			"began after the RPC did, how long it took, both in milliseconds, and its name. Stages that go on are among them.\n" +
			"POD is the beginning of its ID, its name, or namespace/name. The daemon keeps the last 512 such RPCs.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			var pod string
			if len(args) > 0 {
				pod = args[0]
			}
			operations, err := telemetry.Fetch(cmd.Context(), debugSocket(c), pod)
			if err != nil {
				return err
			}
			if len(operations) == 0 {
				return fmt.Errorf("nothing is known of a pod %q: it was too long ago, or before the daemon was started", pod)
			}
			return telemetry.Write(cmd.OutOrStdout(), operations)
		},
	}
}
