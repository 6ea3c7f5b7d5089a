package main

import (
	"bytes"
	_ "embed"
	"math"
	"text/template"
)

// headlines are the metrics that the plot shows, by case and name; the rest is in the table.
var headlines = []string{
	"life: own network, one by one: pod up", "life: host network, one by one: pod up", "life: own network, 50 at once: until all have a log line",
	"life: own network, one by one: StopPodSandbox", "life: own network, one by one: CPU of a pod's life",
	"exec: one by one: ExecSync", "exec: one by one: CPU of an exec", "exec: 10 at once: execs",
	"list: 50 pods, 100 containers: ListContainerStats", "list: 50 pods, 100 containers: ListPodSandboxStats",
	"log: writes of 64 KiB: payload", "log: writes of a line: payload", "log: writes of 64 KiB: runtime's CPU per GB",
	"idle: 50 pods: daemon", "idle: 50 pods: memory of a pod beside its container", "idle: 50 pods: CPU",
	"restart: 50 pods: SIGKILL until all pods are listed ready",
	"pull: large:gzip: time", "pull: large:gzip: CPU", "pull: large:gzip: daemon's peak RSS", "pull: large:gzip: disk",
	"growth: from 50 to 300 pods: memory of one more",
}

//go:embed plot.svg.tmpl
var plotText string

var plotTemplate = template.Must(template.New("plot").Parse(plotText))

// bar is one ratio on a logarithmic axis: from 1 to the right where ours is better, to the left where the peer is.
type bar struct {
	Label, Ratio string
	Y, X, Width  int
	TextX        int
	Worse        bool
}

// The plot's measures in its own units.
const (
	plotWidth, plotLeft = 860, 460 // room for labels on the left
	plotRow, plotTop    = 24, 48
)

// plot draws the ratios of the headlines as an SVG.
func (r *report) plot() ([]byte, error) {
	found := map[string]float64{}
	low, high := 1.0, 10.0
	for _, m := range r.Metrics {
		if v := r.ratio(m); !math.IsNaN(v) {
			found[m.Case+": "+m.Name] = v
		}
	}
	for _, name := range headlines {
		if v, ok := found[name]; ok {
			low, high = min(low, v), max(high, v)
		}
	}
	at := func(v float64) int {
		return plotLeft + int((plotWidth-plotLeft-60)*math.Log(v/low)/math.Log(high/low))
	}
	var bars []bar
	for _, name := range headlines {
		if v, ok := found[name]; ok {
			from, to := min(at(1), at(v)), max(at(1), at(v))
			bars = append(bars, bar{Label: name, Ratio: number(v) + "×", Y: plotTop + len(bars)*plotRow, X: from, Width: max(1, to-from), TextX: to + 6, Worse: v < 1})
		}
	}
	var b bytes.Buffer
	err := plotTemplate.Execute(&b, map[string]any{"Bars": bars, "Width": plotWidth, "Height": plotTop + len(bars)*plotRow + 16,
		"One": at(1), "Top": plotTop - 8, "Bottom": plotTop + len(bars)*plotRow, "Labels": plotLeft - 10,
		"Ours": r.Runtimes[0], "Peer": r.Runtimes[1]})
	return b.Bytes(), err
}
