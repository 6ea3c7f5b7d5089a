// Command criserver is the daemon: it serves the Container Runtime Interface on a
// unix socket, for a kubelet or crictl.
//
// This package is wiring and nothing else: flags and subcommands (main.go), the
// order in which the parts are opened and closed (daemon.go), the lock and the
// sockets (listen.go), what the daemon tells of its work (telemetry.go), and what
// SIGHUP changes (reload.go).
//
// The daemon may be killed at any time: it is the parent of nothing that must live,
// and its successor carries on. SIGTERM and SIGINT end it in good order; the pods
// run on in either case.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/criserver/criserver/pkg/config"
)

// version is set by the linker (-X main.version=...).
var version = "0.0.0-unknown"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "criserver:", err)
		os.Exit(1)
	}
}

// flags are the few settings that the command line has too; they win over the file.
type flags struct{ config, root, state, listen, logLevel string }

// load reads the configuration in force: the defaults, changed by the file, changed by the flags.
func (f flags) load() (*config.Config, error) {
	c, err := config.Load(f.config)
	if err != nil {
		return nil, err
	}
	for _, o := range []struct {
		flag string
		key  *string
	}{{f.root, &c.Root}, {f.state, &c.State}, {f.listen, &c.Listen}, {f.logLevel, &c.LogLevel}} {
		if o.flag != "" {
			*o.key = o.flag
		}
	}
	return c, c.Check()
}

func command() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:           "criserver",
		Short:         "Container runtime of a Kubernetes node",
		Long:          "criserver runs pods for Kubernetes. It serves CRI v1 on a unix socket. No configuration file is needed.",
		Version:       fmt.Sprintf("%s %s %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH),
		Args:          cobra.NoArgs,
		SilenceErrors: true, // main prints them
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tune()
			return run(cmd.Context(), f.load)
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	p := root.PersistentFlags()
	p.StringVar(&f.config, "config", "", "configuration `file` (default "+config.DefaultPath+", if it exists)")
	p.StringVar(&f.root, "root", "", "durable `directory`, instead of the configured one")
	p.StringVar(&f.state, "state", "", "volatile `directory`, instead of the configured one")
	p.StringVar(&f.listen, "listen", "", "`path` of the socket, instead of the configured one")
	p.StringVar(&f.logLevel, "log-level", "", "error, warn, info or debug, instead of the configured `level`")
	root.AddCommand(traceCommand(&f), &cobra.Command{
		Use:   "config",
		Short: "Print the configuration in force, with a description of each key",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err == nil {
				_, err = fmt.Fprint(cmd.OutOrStdout(), c.Document())
			}
			return err
		},
	}, &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), root.Name(), root.Version)
			return err
		},
	})
	return root
}

// tune makes the garbage collector prefer a small daemon over a little less work, unless the environment says
// otherwise. The memory limit, in bytes, is far above what a node with hundreds of pods needs: it only bounds what
// garbage a burst may leave.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(512 << 20)
	}
}
