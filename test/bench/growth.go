package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/criserver/criserver/test/node"
)

// crowd is how many pods there are when growth looks again.
const crowd = 300

// growth compares a node with nothing on it to a crowded one: a pod must cost the same.
func growth(ctx context.Context, t *target, rec recorder) error {
	alone, err := podsUp(ctx, t, rec, 0)
	if err != nil {
		return err
	}
	few, err := t.startMany(ctx, scaled(manyPods))
	if err != nil {
		return err
	}
	atFew, err := t.meter.settled()
	if err != nil {
		return err
	}
	more, err := t.startMany(ctx, max(1, scaled(crowd)-len(few)))
	if err != nil {
		return err
	}
	atAll, err := t.meter.settled()
	if err != nil {
		return err
	}
	rec.part("from %d to %d pods", len(few), len(few)+len(more)).add("memory of one more", "KiB", float64(atAll.pss()-atFew.pss())/float64(len(more)))
	pods := append(few, more...)
	crowded, err := podsUp(ctx, t, rec, len(pods))
	if err != nil {
		return err
	}
	rec.part("%d pods alive", len(pods)).add("pod up, against none alive", "", crowded/alone)
	return concurrently(10, len(pods), func(i int) error { return pods[i].remove(ctx) })
}

// podsUp makes pods one by one while so many others are alive, and returns the median of "pod up" in ms.
func podsUp(ctx context.Context, t *target, rec recorder, alive int) (median float64, err error) {
	rec = rec.part("%d pods alive", alive)
	var took []float64
	for range scaled(20) {
		p, s, err := t.start(ctx, ownNetwork)
		if err != nil {
			return 0, err
		}
		took = append(took, s[stepUp])
		if err := p.end(ctx, s); err != nil {
			return 0, err
		}
	}
	rec.add(stepUp, "ms", took...)
	u, err := t.meter.settled()
	rec.add("daemon and helpers", "MiB", float64(u.pss())/1024)
	return percentile(took, 0.5), err
}

// endurance asks for much and looks at what stays: memory and threads as figures; a process or descriptor more than
// before is an error.
func endurance(ctx context.Context, t *target, rec recorder) error {
	p, _, err := t.start(ctx, hostNetwork)
	if err != nil {
		return err
	}
	work := func(execs, lives int) error {
		if err := concurrently(10, execs, func(int) error { return p.exec(ctx) }); err != nil {
			return err
		}
		return concurrently(10, lives, func(int) error {
			p, s, err := t.start(ctx, ownNetwork)
			if err != nil {
				return err
			}
			return p.end(ctx, s)
		})
	}
	if err := work(scaled(1000), scaled(100)); err != nil { // what is kept for reuse is there from now on
		return err
	}
	before, err := t.atRest(ctx, p, 60, nil)
	if err != nil {
		return err
	}
	execs, lives := scaled(20000), scaled(2000)
	if err := work(execs, lives); err != nil {
		return err
	}
	after, err := t.atRest(ctx, p, 600, before.descriptors())
	if err != nil {
		return err
	}
	rec = rec.part("%d execs, %d pods", execs, lives)
	rec.add("memory before", "MiB", float64(before.pss())/1024)
	rec.add("memory after", "MiB", float64(after.pss())/1024)
	rec.add("threads before", "", float64(before.threads()))
	rec.add("threads after", "", float64(after.threads()))
	rec.add("descriptors before", "", float64(before.descriptors().Count()))
	rec.add("descriptors after", "", float64(after.descriptors().Count()))
	if more := after.descriptors().More(before.descriptors()); len(more) > 0 || after.processes > before.processes {
		return fmt.Errorf("%d processes before, %d after; descriptors more than before: %s", before.processes, after.processes, strings.Join(more, ", "))
	}
	return p.remove(ctx)
}

// atRest is the usage with the fewest descriptors of several, with an exec between every two: some are closed only when
// garbage is collected, and that happens when something is asked of the runtime. It may stop when there are no more than
// so many.
func (t *target) atRest(ctx context.Context, p *pod, readings int, enough node.Descriptors) (least usage, err error) {
	for i := range readings {
		u, err := t.meter.usage()
		if err != nil {
			return u, err
		}
		if i == 0 || u.descriptors().Count() < least.descriptors().Count() {
			least = u
		}
		if enough != nil && len(u.descriptors().More(enough)) == 0 {
			return u, nil
		}
		if err := p.exec(ctx); err != nil {
			return u, err
		}
	}
	return least, nil
}
