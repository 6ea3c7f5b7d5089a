package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

var hostLocalKeys = []string{
	"type", "name", "routes", "dataDir", "resolvConf", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway",
}

func (p *Plugins) hostLocalAdd(ctx context.Context, r *Request) (types.Result, error) {
	conf, _, err := allocator.LoadIPAMConfig(r.Config, r.Args)
	if err != nil {
		return nil, err
	}
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: conf.Routes}
	if conf.ResolvConf != "" {
		if result.DNS, err = readResolvConf(conf.ResolvConf); err != nil {
			return nil, err
		}
	}
	s, err := p.stores.open(ctx, conf.Name, conf.DataDir)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if result.IPs, err = allocate(s, conf, r); err != nil {
		return nil, err
	}
	return result, nil
}

// allocate takes one address of each range set: the requested one if there is one in the set.
// Nothing stays reserved if it fails.
func allocate(s *store, conf *allocator.IPAMConfig, r *Request) (ips []*current.IPConfig, err error) {
	defer func() {
		if err != nil && len(ips) > 0 {
			err = fmt.Errorf("%w%s", err, releaseNote(release(s, r)))
		}
	}()
	requested := map[string]net.IP{}
	for _, ip := range conf.IPArgs {
		requested[ip.String()] = ip
	}
	for i := range conf.Ranges {
		set := &conf.Ranges[i]
		var want net.IP
		for key, ip := range requested {
			if set.Contains(ip) {
				want = ip
				delete(requested, key)
				break
			}
		}
		ip, err := allocator.NewIPAllocator(set, s, i).Get(r.ContainerID, r.IfName, want)
		if err != nil {
			return ips, fmt.Errorf("host-local: range %d of network %q: %w", i, conf.Name, err)
		}
		ips = append(ips, ip)
	}
	if len(requested) > 0 {
		return ips, fmt.Errorf("host-local: no range of network %q contains the requested %s",
			conf.Name, strings.Join(slices.Sorted(maps.Keys(requested)), " "))
	}
	return ips, nil
}

func releaseNote(err error) string {
	if err == nil {
		return ""
	}
	return "; and giving back what was reserved: " + err.Error()
}

func (p *Plugins) hostLocalDel(ctx context.Context, r *Request) error {
	conf, _, err := allocator.LoadIPAMConfig(r.Config, r.Args)
	if err != nil {
		return err
	}
	s, err := p.stores.open(ctx, conf.Name, conf.DataDir)
	if err != nil {
		return err
	}
	defer s.Close()
	return release(s, r)
}

func release(s *store, r *Request) error {
	if err := s.Lock(); err != nil {
		return err
	}
	defer s.Unlock()
	return s.ReleaseByID(r.ContainerID, r.IfName)
}

// Attachments returns the interfaces that hold an address of host-local for this configuration of a network's plugin.
// It is empty for a plugin that delegates to another IPAM plugin or to none.
func (p *Plugins) Attachments(ctx context.Context, config []byte) ([]types.GCAttachment, error) {
	var conf types.PluginConf
	if err := json.Unmarshal(config, &conf); err != nil {
		return nil, err
	}
	if conf.IPAM.Type != "host-local" {
		return nil, nil
	}
	ipam, _, err := allocator.LoadIPAMConfig(config, "")
	if err != nil {
		return nil, err
	}
	s, err := p.stores.open(ctx, ipam.Name, ipam.DataDir)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.Lock(); err != nil {
		return nil, err
	}
	defer s.Unlock()
	var held []types.GCAttachment
	for _, key := range slices.Sorted(maps.Keys(s.owners)) {
		if id, ifname, ok := strings.Cut(key, disk.LineBreak); ok {
			held = append(held, types.GCAttachment{ContainerID: id, IfName: ifname})
		}
	}
	return held, nil
}

// readResolvConf reads the DNS settings of a file in the form of resolv.conf(5).
func readResolvConf(path string) (types.DNS, error) {
	var dns types.DNS
	data, err := os.ReadFile(path)
	if err != nil {
		return dns, fmt.Errorf("host-local: resolvConf: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, words[1])
		case "domain":
			dns.Domain = words[1]
		case "search":
			dns.Search = append(dns.Search, words[1:]...)
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns, nil
}
