// Command bench measures a container runtime as its clients meet it, over CRI: how long the calls take, what CPU and
// memory they cost, and how that grows. docs/performance.md says how it is run and what each case measures.
//
// It boots criserver on a node of its own, as the tests do, or takes one that runs already (-endpoint). With -peer
// another runtime is measured in turn, case by case and round by round, so that both meet the same machine: only the
// ratios of one run mean something elsewhere.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/node"
)

var (
	peerAddr    = flag.String("peer", "", "measure the runtime at this `address` (unix:///path) in turn; it must send every registry to -registry")
	peerRestart = flag.String("peer-restart", "", "shell `command` that starts the peer again after it was killed; without it the peer has no case restart")
	caseNames   = flag.String("cases", "life,exec,list,log,idle,restart,pull,growth", "the cases to run, of `"+strings.Join(names(), ",")+"`")
	rounds      = flag.Int("rounds", 3, "run every case so many times")
	scale       = flag.Float64("scale", 1, "multiplies how often things are repeated, and how many pods there are, within a round")
	out         = flag.String("out", "", "`directory` for bench.json, bench.md and bench.svg")
	doc         = flag.String("doc", "", "Markdown `file` whose marked place gets the table; the plot is written beside it")
	serveIn     = flag.String("serve", "", "internal: be the node on which criserver runs, in this `cgroup`")
)

func main() {
	flag.Parse()
	if *serveIn != "" || node.Inside() {
		node.Main(server{group: *serveIn}, node.ServeImages)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures, and writes what was measured even when something failed.
func run(ctx context.Context) (err error) {
	cases, err := choose(*caseNames)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it makes cgroups and reads what other processes use")
	}
	targets, err := openTargets()
	defer func() {
		for _, t := range targets {
			err = errors.Join(err, t.close())
		}
	}()
	if err != nil {
		return err
	}
	rep := newReport(targets)
	failed := measure(ctx, rep, targets, cases)
	return errors.Join(failed, rep.write(*out, *doc))
}

// openTargets are ours and the peer, if there is one. Those that were opened are to be closed even after an error.
func openTargets() (targets []*target, err error) {
	ours, err := openOurs()
	if err != nil {
		return nil, err
	}
	targets = append(targets, ours)
	if *peerAddr == "" {
		return targets, nil
	}
	if err := node.ServeImages(); err != nil {
		return targets, fmt.Errorf("serve images to the peer: %w", err)
	}
	peer, err := openTarget(*peerAddr, "peer")
	if err != nil {
		return targets, fmt.Errorf("peer: %w", err)
	}
	if peer.name == ours.name { // another version of it
		peer.name += " (peer)"
	}
	if *peerRestart != "" {
		peer.restart = shell(*peerRestart)
	}
	return append(targets, peer), nil
}

// measure runs the cases in turn. A case that fails is not run again for that runtime; the others go on.
func measure(ctx context.Context, rep *report, targets []*target, cases []benchCase) (failed error) {
	broken := map[string]bool{}
	for round := range *rounds {
		for _, c := range cases {
			for _, t := range targets {
				key := c.name + " " + t.name
				if broken[key] || ctx.Err() != nil {
					continue
				}
				fmt.Fprintf(os.Stderr, "round %d of %d: %s, %s\n", round+1, *rounds, c.name, t.name)
				err := t.runCase(ctx, c, rep)
				if err != nil {
					broken[key] = true
					failed = errors.Join(failed, fmt.Errorf("%s, %s: %w", c.name, t.name, err))
				}
			}
		}
	}
	return errors.Join(failed, ctx.Err())
}

// benchCase is something that is measured. It must leave no pod behind; what it leaves after an error is removed.
type benchCase struct {
	name string
	run  func(ctx context.Context, t *target, rec recorder) error
}

var allCases = []benchCase{
	{"life", life}, {"exec", execs}, {"list", lists}, {"log", logs}, {"idle", idle},
	{"restart", restart}, {"pull", pull}, {"growth", growth}, {"endurance", endurance},
}

func names() (all []string) {
	for _, c := range allCases {
		all = append(all, c.name)
	}
	return all
}

func choose(list string) (chosen []benchCase, err error) {
	for _, name := range strings.Split(list, ",") {
		found := false
		for _, c := range allCases {
			if c.name == name {
				chosen, found = append(chosen, c), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-cases: there is no case %q; there are %s", name, strings.Join(names(), ", "))
		}
	}
	return chosen, nil
}

// scaled is n times -scale, and at least one.
func scaled(n int) int { return max(1, int(float64(n)**scale)) }
