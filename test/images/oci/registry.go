package oci

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Registry answers the pull half of the OCI distribution API from layouts. The host of a reference is dropped, so one
// server stands in for every registry. Set User and Password before it serves to ask for them (basic authentication).
type Registry struct {
	User, Password string

	layouts []*Layout
	repos   map[string]map[string]digest.Digest // repository -> tag or digest -> manifest
}

// NewRegistry serves layouts; a later one wins where two have the same reference.
func NewRegistry(layouts ...*Layout) *Registry {
	r := &Registry{layouts: layouts, repos: map[string]map[string]digest.Digest{}}
	for _, l := range layouts {
		for _, ref := range l.Refs() {
			repo, tag := SplitRef(ref)
			if r.repos[repo] == nil {
				r.repos[repo] = map[string]digest.Digest{}
			}
			r.repos[repo][tag] = l.refs[ref].Digest
		}
	}
	return r
}

// SplitRef takes the host off a full reference and splits the rest: registry.k8s.io/pause:3.9 is pause and 3.9. An
// image that is kept under its digest has that as its tag.
func SplitRef(ref string) (repo, tag string) {
	_, rest, _ := strings.Cut(ref, "/")
	if repo, dgst, ok := strings.Cut(rest, "@"); ok {
		return repo, dgst
	}
	repo, tag, _ = strings.Cut(rest, ":")
	return repo, tag
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if user, password, _ := req.BasicAuth(); r.User != "" && (user != r.User || password != r.Password) {
		w.Header().Set("Www-Authenticate", `Basic realm="test"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	switch repo, rest := splitPath(path); {
	case path == "" || req.URL.Path == "/v2":
		fmt.Fprint(w, "{}")
	case rest == "/tags/list":
		r.tags(w, repo)
	case strings.HasPrefix(rest, "/manifests/"):
		r.manifest(w, repo, strings.TrimPrefix(rest, "/manifests/"))
	case strings.HasPrefix(rest, "/blobs/"):
		r.blob(w, req, digest.Digest(strings.TrimPrefix(rest, "/blobs/")))
	default:
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN")
	}
}

// splitPath splits "a/b/manifests/x" into "a/b" and "/manifests/x".
func splitPath(path string) (repo, rest string) {
	for _, verb := range []string{"/manifests/", "/blobs/", "/tags/list"} {
		if i := strings.LastIndex(path, verb); i > 0 {
			return path[:i], path[i:]
		}
	}
	return path, ""
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, strings.ToLower(code))
}

func (r *Registry) tags(w http.ResponseWriter, repo string) {
	names := []string{}
	for tag := range r.repos[repo] {
		if !strings.Contains(tag, ":") {
			names = append(names, tag)
		}
	}
	slices.Sort(names)
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": names}) // the client has gone
}

func (r *Registry) manifest(w http.ResponseWriter, repo, ref string) {
	d, ok := r.repos[repo][ref]
	if !ok && r.repos[repo] != nil {
		d = digest.Digest(ref)
	}
	b, err := os.ReadFile(r.find(d))
	if err != nil {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(b, &m) // some manifests are broken on purpose
	w.Header().Set("Content-Type", m.MediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // to HEAD, net/http sends the headers alone
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	f, err := os.Open(r.find(d))
	if err != nil {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, req, "", Epoch, f) // ranges too
}

// find is the path of a blob in whichever layout has it, or "".
func (r *Registry) find(d digest.Digest) string {
	if d.Validate() != nil {
		return ""
	}
	for _, l := range r.layouts {
		if p := l.BlobPath(d); exists(p) {
			return p
		}
	}
	return ""
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }
