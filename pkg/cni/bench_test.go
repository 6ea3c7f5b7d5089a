package cni

import (
	"fmt"
	"strings"
	"testing"
)

const benchConfig = `{"cniVersion":"1.0.0","name":"bench","plugins":[
	{"type":"bridge","bridge":"br-bench","isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","hairpinMode":true,
	 "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.79.0.0/16"}],[{"subnet":"fd79::/64"}]]}},
	{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}`

// BenchmarkPod attaches and detaches a pod of a dual-stack network, beside pods that are there already, with the
// plugins in process and as programs. The namespaces are made before and dropped after, off the clock: while the kernel
// takes a namespace apart it holds the lock that ADD needs.
func BenchmarkPod(b *testing.B) {
	for _, builtin := range []bool{true, false} {
		for _, alive := range []int{0, 200} {
			for _, ports := range []int{0, 2} {
				if !builtin && alive > 0 {
					continue // it takes minutes and shows nothing new
				}
				b.Run(fmt.Sprintf("builtin=%v/alive=%d/ports=%d", builtin, alive, ports), func(b *testing.B) {
					benchmarkPod(b, builtin, alive, ports)
				})
			}
		}
	}
}

func benchmarkPod(b *testing.B, builtin bool, alive, ports int) {
	dropBridge(b, "br-bench")
	run(b, "nft", "flush", "ruleset")
	n := openWith(b, strings.ReplaceAll(benchConfig, "DATA", b.TempDir()), func(o *Options) { o.Builtin = builtin })
	n.log.Logger.SetLevel(0)
	for range alive {
		setup(b, n, newPod(b))
	}
	pods := make([]Pod, 0, b.N)
	for i := range b.N {
		p := newPod(b)
		for j := range ports {
			p.Ports = append(p.Ports, PortMapping{Protocol: "tcp", HostPort: int32(1000 + i*ports + j), ContainerPort: 80})
		}
		pods = append(pods, p)
	}
	b.ResetTimer()
	for _, p := range pods {
		if _, err := n.Setup(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	up := b.Elapsed()
	for _, p := range pods {
		if err := n.Teardown(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	down := b.Elapsed() - up
	b.ReportMetric(1e3*up.Seconds()/float64(b.N), "ms-up/pod")
	b.ReportMetric(1e3*down.Seconds()/float64(b.N), "ms-down/pod")
}
