package imagesvc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	testUser     = "someone"
	testPassword = "p4ss:w/rd"
	testToken    = "registry-token-value"
)

// wantBasic and the like make a registry ask for credentials.
func (r *testRegistry) wantBasic() {
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		user, password, ok := req.BasicAuth()
		if ok && user == testUser && password == testPassword {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func (r *testRegistry) wantBearer(token, realm string) {
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == "Bearer "+token {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="reg"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

// tokenServer gives out testToken for the password or the refresh token "identity".
func tokenServer(t *testing.T) (url string, forms func() []string) {
	r := newRegistry(t)
	var mu sync.Mutex
	var seen []string
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		if err := req.ParseForm(); err != nil {
			t.Error(err)
		}
		mu.Lock()
		seen = append(seen, req.Form.Encode())
		mu.Unlock()
		f := req.Form
		if f.Get("password") == testPassword && f.Get("username") == testUser || f.Get("refresh_token") == "identity" {
			fmt.Fprintf(w, `{"access_token":%q,"expires_in":300}`, testToken)
			return true
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, "no: %s", f.Encode())
		return true
	})
	return r.URL + "/token", func() []string { mu.Lock(); defer mu.Unlock(); return seen }
}

// rows: IM-14, IM-15, IM-16, IM-17, IM-18, GAP-05
func TestCredentialForms(t *testing.T) {
	tokens, _ := tokenServer(t)
	encoded := base64.StdEncoding.EncodeToString([]byte(testUser + ":" + testPassword + "\x00\x00"))
	basic := func(r *testRegistry) { r.wantBasic() }
	bearer := func(r *testRegistry) { r.wantBearer(testToken, tokens) }
	for name, c := range map[string]struct {
		protect func(*testRegistry)
		auth    Auth
		err     error
	}{
		"password, basic":         {basic, Auth{Username: testUser, Password: testPassword}, nil},
		"password, token server":  {bearer, Auth{Username: testUser, Password: testPassword}, nil},
		"auth with NULs":          {basic, Auth{Auth: encoded}, nil},
		"identity token":          {bearer, Auth{IdentityToken: "identity"}, nil},
		"registry token":          {bearer, Auth{RegistryToken: testToken}, nil},
		"wrong registry token":    {bearer, Auth{RegistryToken: "other"}, errdefs.ErrUnauthenticated},
		"wrong password":          {basic, Auth{Username: testUser, Password: "wr0ng-secret"}, errdefs.ErrUnauthenticated},
		"wrong password, token":   {bearer, Auth{Username: testUser, Password: "wr0ng-secret"}, errdefs.ErrUnauthenticated},
		"anonymous":               {basic, Auth{}, errdefs.ErrUnauthenticated},
		"for another server":      {basic, Auth{Username: testUser, Password: testPassword, ServerAddress: "https://index.docker.io/v1/"}, errdefs.ErrUnauthenticated},
		"for this server":         {basic, Auth{Username: testUser, Password: testPassword, ServerAddress: "HOST"}, nil},
		"for this server, as URL": {basic, Auth{Username: testUser, Password: testPassword, ServerAddress: "http://HOST/v2/"}, nil},
		"auth not base64":         {basic, Auth{Auth: "%%%"}, errdefs.ErrInvalidArgument},
		"auth without colon":      {basic, Auth{Auth: base64.StdEncoding.EncodeToString([]byte("nocolon"))}, errdefs.ErrInvalidArgument},
		"bad server address":      {basic, Auth{ServerAddress: "http://[::1"}, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newRegistry(t), open(t)
			ref := r.simple("app:1", gzipLayer(file("a", "1")))
			c.protect(r)
			c.auth.ServerAddress = strings.ReplaceAll(c.auth.ServerAddress, "HOST", r.host)
			_, err := s.Pull(t.Context(), ref, c.auth)
			if c.err == nil && err != nil || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			if err != nil {
				for _, secret := range []string{testPassword, "wr0ng-secret", testToken, encoded} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("the error has %q: %v", secret, err)
					}
				}
			}
		})
	}
}

// TestRedirectedBlobs: blobs may be anywhere, credentials and headers of the configuration stay at the registry.
func TestRedirectedBlobs(t *testing.T) {
	r, storage, dir := newRegistry(t), newRegistry(t), t.TempDir()
	r.hostsTOML(t, dir, fmt.Sprintf("server = %q\n[header]\nX-Secret = \"from-hosts-toml\"\n", r.URL))
	s := open(t, func(o *Options) { o.RegistryDir = dir })
	l := gzipLayer(file("a", "1"))
	ref := r.simple("app:1", l)
	storage.add(l.blob, "")
	d := digest.FromBytes(l.blob)
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		if user, _, _ := req.BasicAuth(); user != testUser {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if req.Header.Get("X-Secret") != "from-hosts-toml" {
			t.Error("header of hosts.toml is missing")
		}
		if !strings.HasSuffix(req.URL.Path, d.String()) {
			return false
		}
		http.Redirect(w, req, storage.URL+"/blobs/"+d.String()+"?X-Amz-Signature=signed", http.StatusTemporaryRedirect)
		return true
	})
	if _, err := s.Pull(t.Context(), ref, Auth{Username: testUser, Password: testPassword}); err != nil {
		t.Fatal(err)
	}
	seen := storage.requests()
	if len(seen) == 0 {
		t.Fatal("the storage was not asked")
	}
	for _, req := range seen {
		for _, h := range []string{"Authorization", "X-Secret", "Cookie", "Referer"} {
			if v := req.Header.Get(h); v != "" {
				t.Errorf("%s: %q went to the storage", h, v)
			}
		}
	}
}

// TestStorageWantsCredentials: a redirect's target that asks for credentials gets none, and its address is not shown with its signature.
func TestStorageWantsCredentials(t *testing.T) {
	r, storage, s := newRegistry(t), newRegistry(t), open(t)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	storage.wantBasic()
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, req, storage.URL+"/x?sig=signature-value", http.StatusFound)
		return true
	})
	_, err := s.Pull(t.Context(), ref, Auth{Username: testUser, Password: testPassword})
	if !errors.Is(err, errdefs.ErrUnauthenticated) || strings.Contains(err.Error(), "signature-value") {
		t.Error(err)
	}
	for _, req := range storage.requests() {
		if req.Header.Get("Authorization") != "" {
			t.Error("credentials sent to the storage")
		}
	}
}

func TestRealm(t *testing.T) {
	tokens, forms := tokenServer(t)
	hop := newRegistry(t)
	hop.step(func(w http.ResponseWriter, req *http.Request) bool {
		http.Redirect(w, req, tokens, http.StatusPermanentRedirect)
		return true
	})
	for name, realm := range map[string]string{
		"metadata service": "http://169.254.169.254/token", "file": "file:///etc/passwd", "none": "", "redirected": hop.URL + "/token",
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newRegistry(t), open(t)
			ref := r.simple("app:1", gzipLayer(file("a", "1")))
			r.wantBearer(testToken, realm)
			_, err := s.Pull(t.Context(), ref, Auth{Username: testUser, Password: testPassword})
			if !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Error(err)
			}
		})
	}
	if seen := forms(); len(seen) != 0 {
		t.Error("the password went to where a token server redirected:", seen)
	}
	https := &url.URL{Scheme: "https", Host: "registry.example"}
	a := &authorizer{origin: https, cred: credential{username: "u", secret: "s"}}
	for realm, ok := range map[string]bool{
		"https://auth.example/token": true, "http://auth.example/token": false, "http://127.0.0.1/": false, "https://localhost:1/": false, "ftp://x/": false,
		"https://169.254.169.254/": false, "https://[fe80::1]/": false, "https://0.0.0.0/": false,
	} {
		if err := a.checkRealm(realm); ok != (err == nil) {
			t.Errorf("%s: %v", realm, err)
		}
	}
}

// hostsTOML writes the configuration of the registry.
func (r *testRegistry) hostsTOML(t *testing.T, dir, text string) {
	t.Helper()
	host, port, _ := strings.Cut(r.host, ":")
	sub := filepath.Join(dir, host+"_"+port+"_")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rows: D-128
func TestMirrors(t *testing.T) {
	dir := t.TempDir()
	upstream, mirror := newRegistry(t), newRegistry(t)
	s := open(t, func(o *Options) { o.RegistryDir = dir })
	layers := []testLayer{gzipLayer(file("a", "1")), gzipLayer(file("b", "2"))}
	ref := upstream.simple("app:1", layers...)
	mirror.simple("app:1", layers...)
	upstream.hostsTOML(t, dir, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", upstream.URL, mirror.URL))
	auth := Auth{Username: testUser, Password: testPassword}

	mirror.wantBasic() // and gets nothing: the credential is for the upstream
	upstream.wantBasic()
	img, err := s.Pull(t.Context(), ref, auth)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range mirror.requests() {
		if req.Header.Get("Authorization") != "" {
			t.Error("the mirror got the upstream's credentials")
		}
		if got := req.URL.Query().Get("ns"); got != upstream.host {
			t.Errorf("ns=%q", got)
		}
	}

	// Named by server_address, the mirror gets it and serves alone.
	if err := s.Remove(t.Context(), img.ID.String()); err != nil {
		t.Fatal(err)
	}
	before := len(upstream.requests())
	auth.ServerAddress = mirror.host
	if _, err := s.Pull(t.Context(), ref, auth); err != nil {
		t.Fatal(err)
	}
	if n := len(upstream.requests()) - before; n != 0 {
		t.Errorf("%d requests to the upstream", n)
	}

	// A mirror that fails is passed over, without a restart or a change of the service.
	s.Remove(t.Context(), img.ID.String())
	mirror.step(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	upstream.step(nil)
	if _, err := s.Pull(t.Context(), ref, Auth{}); err != nil {
		t.Fatal(err)
	}

	// The configuration is read anew: now for all hosts, and only the mirror.
	s.Remove(t.Context(), img.ID.String())
	os.RemoveAll(dir)
	os.MkdirAll(filepath.Join(dir, "_default"), 0o755)
	os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte(fmt.Sprintf("server = %q\n", mirror.URL)), 0o644)
	mirror.step(nil)
	before = len(upstream.requests())
	if _, err := s.Pull(t.Context(), ref, Auth{}); err != nil {
		t.Fatal(err)
	}
	if n := len(upstream.requests()) - before; n != 0 {
		t.Errorf("%d requests to the upstream", n)
	}
}

// TestErrorsKeepSecrets: a registry that echoes what it was sent.
func TestErrorsKeepSecrets(t *testing.T) {
	r, s := newRegistry(t), open(t)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	for _, code := range []int{400, 403, 500} {
		r.step(func(w http.ResponseWriter, req *http.Request) bool {
			header := req.Header.Get("Authorization")
			if header == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"errors":[{"code":"X","message":"your header was %s, password %s, https://u:%s@host/?t=%s"}]}`, header, testPassword, url.QueryEscape(testPassword), testPassword)
			return true
		})
		_, err := s.Pull(t.Context(), ref, Auth{Username: testUser, Password: testPassword})
		if err == nil {
			t.Fatal("no error")
		}
		for _, secret := range []string{testPassword, url.QueryEscape(testPassword), base64.StdEncoding.EncodeToString([]byte(testUser + ":" + testPassword))} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%d: %q in %v", code, secret, err)
			}
		}
		if code == 403 && !strings.Contains(err.Error(), "your header was") { // others have no body: they answer a HEAD
			t.Errorf("%d: the registry's message is lost: %v", code, err)
		}
	}
}

func TestScrub(t *testing.T) {
	for in, want := range map[string]string{
		"Get https://user:pw@host/v2/x?sig=1: EOF": "Get https://host/v2/x: EOF",
		"Authorization: Bearer abcdefghij":         "Authorization: Bearer [redacted]",
		"x eyJhbGciOiJI.eyJzdWIi.c2ln y":           "x [redacted] y",
		"line\nbreak\x1b[31m":                      "line break [31m",
	} {
		if got := scrub(in, Auth{}); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := scrub(strings.Repeat("ä", 5000), Auth{}); len(got) > maxErrorText+8 {
		t.Error("not cut:", len(got))
	}
}

func TestHosts(t *testing.T) {
	for _, same := range [][2]string{{"docker.io", "https://index.docker.io/v1/"}, {"registry-1.docker.io", "docker.io"}, {"Example.com:443", "example.com"}} {
		if h, err := serverHost(same[1]); err != nil || h != canonicalHost(same[0]) {
			t.Error(same, h, err)
		}
	}
	hub := credential{secret: "s"}
	if !hub.allows("registry-1.docker.io", "docker.io") || hub.allows("mirror.example", "docker.io") || hub.allows("evil-docker.io", "docker.io") {
		t.Error("credentials for Docker Hub go elsewhere")
	}
}
