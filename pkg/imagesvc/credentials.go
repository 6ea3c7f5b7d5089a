package imagesvc

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// credential is an Auth made ready for one pull.
type credential struct {
	username, secret string // secret without username: an OAuth2 refresh token
	bearer           string // sent as it is
	server           string // the only host that may see it, canonical; empty: the registry of the reference, but no mirror
}

// decode returns user and password of the field auth: base64 of "user:password", perhaps padded with NULs (as docker did once).
func (a Auth) decode() (user, password string, err error) {
	if a.Auth == "" {
		return "", "", nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a.Auth))
	if err != nil {
		return "", "", fmt.Errorf("auth.auth is not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", fmt.Errorf("auth.auth is not base64 of user:password: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.TrimRight(password, "\x00"), nil
}

// credential chooses among the forms of CRI's AuthConfig; where several are filled in, the most specific one counts.
func (a Auth) credential() (credential, error) {
	c := credential{}
	if a.ServerAddress != "" {
		host, err := serverHost(a.ServerAddress)
		if err != nil {
			return c, err
		}
		c.server = host
	}
	switch {
	case a.RegistryToken != "":
		c.bearer = a.RegistryToken
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.Username != "":
		c.username, c.secret = a.Username, a.Password
	case a.Auth != "":
		var err error
		if c.username, c.secret, err = a.decode(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// allows says whether the credential may go to host in a pull from registry (both host:port).
func (c credential) allows(host, registry string) bool {
	if c.server != "" {
		return canonicalHost(host) == c.server
	}
	return canonicalHost(host) == canonicalHost(registry)
}

// serverHost returns the canonical host of CRI's server_address, which comes as host, host/path or URL.
func serverHost(address string) (string, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("auth.server_address is neither a host nor a URL: %w", errdefs.ErrInvalidArgument)
	}
	return canonicalHost(u.Host), nil
}

// canonicalHost makes hosts comparable: lower case, no default port, one name for Docker Hub.
func canonicalHost(host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}
