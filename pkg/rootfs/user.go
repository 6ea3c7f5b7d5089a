package rootfs

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxID is the largest user and group ID, as Kubernetes and Docker have it. Above it 32-bit programs see
	// negative numbers, and (uid_t)-1 means "leave it" to chown(2) and setresuid(2).
	maxID = 1<<31 - 1
	// maxUserFile limits /etc/passwd and /etc/group of an image, in bytes.
	maxUserFile = 4 << 20
	// maxGroups is the kernel's NGROUPS_MAX.
	maxGroups = 65536
)

// User is who a process of a container runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplemental: GID first (CRI: ContainerUser), then those of the image, then those asked for
	Name     string   // of the passwd entry, "" without one
	Home     string   // of the passwd entry, "/" without one
}

// ResolveUser says who a container runs as: the fields of sc win over image's USER ("user", "uid", "user:group" ...).
// Unknown names, numbers out of range and malformed passwd and group files give ErrInvalidArgument and name the field.
//
// A number is a number: a user of the image who is named "1000" does not change who 1000 is. What reads like a number
// to some parser, but is not written as one ("+0", "00", "0x0", "1e3"), is refused rather than looked up as a name.
func ResolveUser(root *os.File, image string, sc *runtimeapi.LinuxContainerSecurityContext) (User, error) {
	who, err := request(image, sc)
	if err != nil {
		return User{}, err
	}
	db, err := readUsers(root)
	if err != nil {
		return User{}, err
	}
	u, err := who.find(db)
	if err != nil {
		return User{}, err
	}
	switch sc.GetSupplementalGroupsPolicy() {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		u.Groups = append(u.Groups, db.groupsOf(u.Name)...)
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return User{}, invalid(fieldPolicy, "unknown value %d", sc.GetSupplementalGroupsPolicy())
	}
	for i, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > maxID {
			return User{}, invalid(fmt.Sprintf("%s[%d]", fieldGroups, i), "%d is not within 0 and %d", g, maxID)
		}
		u.Groups = append(u.Groups, uint32(g))
	}
	u.Groups = unique(u.Groups)
	if len(u.Groups) > maxGroups {
		return User{}, invalid(fieldGroups, "%d groups; the kernel allows %d", len(u.Groups), maxGroups)
	}
	return u, nil
}

// LookupUser resolves Docker's "user[:group]" form, for exec. As there, a group that is named replaces all the groups
// that the image gives the user.
func LookupUser(root *os.File, spec string) (User, error) {
	who, err := parseUser("user", spec)
	if err != nil {
		return User{}, err
	}
	db, err := readUsers(root)
	if err != nil {
		return User{}, err
	}
	u, err := who.find(db)
	if err != nil {
		return User{}, err
	}
	if who.group == (ref{}) {
		u.Groups = unique(append(u.Groups, db.groupsOf(u.Name)...))
	}
	return u, nil
}

// The fields that errors name.
const (
	fieldUser   = "linux.security_context.run_as_user"
	fieldName   = "linux.security_context.run_as_username"
	fieldGroup  = "linux.security_context.run_as_group"
	fieldGroups = "linux.security_context.supplemental_groups"
	fieldPolicy = "linux.security_context.supplemental_groups_policy"
)

func invalid(field, format string, a ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
}

// ref is a user or a group: by name, by ID, or (the zero value) not given.
type ref struct {
	name  string
	id    uint32
	given bool
}

// wanted is a user and perhaps a group before they are looked up; field is where they come from.
type wanted struct {
	field       string
	user, group ref
}

// request takes the user from the security context or, if that has none, from the image.
func request(image string, sc *runtimeapi.LinuxContainerSecurityContext) (wanted, error) {
	var w wanted
	switch uid, name := sc.GetRunAsUser(), sc.GetRunAsUsername(); {
	case uid != nil && name != "":
		return w, invalid(fieldName, "cannot be given together with run_as_user")
	case uid != nil:
		if uid.Value < 0 || uid.Value > maxID {
			return w, invalid(fieldUser, "%d is not within 0 and %d", uid.Value, maxID)
		}
		w = wanted{field: fieldUser, user: ref{id: uint32(uid.Value), given: true}}
	case name != "":
		r, err := parseRef(fieldName, name)
		if err != nil {
			return w, err
		}
		if r.name == "" {
			return w, invalid(fieldName, "%q is an ID; give it as run_as_user", name)
		}
		w = wanted{field: fieldName, user: r}
	default:
		if sc.GetRunAsGroup() != nil {
			return w, invalid(fieldGroup, "needs run_as_user or run_as_username")
		}
		return parseUser("USER of the image", image)
	}
	if gid := sc.GetRunAsGroup(); gid != nil {
		if gid.Value < 0 || gid.Value > maxID {
			return w, invalid(fieldGroup, "%d is not within 0 and %d", gid.Value, maxID)
		}
		w.group = ref{id: uint32(gid.Value), given: true}
	}
	return w, nil
}

// parseUser reads "user", "uid", "user:group", "user:gid", "uid:group", "uid:gid", ":group" or "".
func parseUser(field, s string) (wanted, error) {
	w := wanted{field: field}
	user, group, _ := strings.Cut(s, ":")
	var err error
	if w.user, err = parseRef(field, user); err != nil {
		return w, err
	}
	w.group, err = parseRef(field, group)
	return w, err
}

func parseRef(field, s string) (ref, error) {
	if s == "" {
		return ref{}, nil
	}
	if len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return ref{}, invalid(field, "%.64q is no name of a user or group", s)
	}
	if id, ok := parseID(s); ok {
		return ref{id: id, given: true}, nil
	}
	_, floatErr := strconv.ParseFloat(s, 64)
	_, intErr := strconv.ParseInt(s, 0, 64)
	numeric := strings.Trim(s, "+-0123456789") == ""
	if numeric || intErr == nil || (floatErr == nil && strings.ContainsAny(s, "0123456789")) {
		return ref{}, invalid(field, "%.64q is no ID: write it in decimal, within 0 and %d", s, maxID)
	}
	return ref{name: s, given: true}, nil
}

// parseID reads a decimal ID in its only spelling: no sign, no leading zero, at most maxID.
func parseID[T string | []byte](s T) (uint32, bool) {
	if len(s) == 0 || len(s) > 10 || (s[0] == '0' && len(s) > 1) {
		return 0, false
	}
	var n uint64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + uint64(s[i]-'0')
	}
	return uint32(n), n <= maxID
}

// find looks the user up. Without a group it has the one of its passwd entry, else 0.
func (w wanted) find(db users) (User, error) {
	u := User{UID: w.user.id, Home: "/"}
	e, found := db.user(w.user)
	switch {
	case found && e.bad:
		return User{}, invalid(w.field, "the entry of %.64q in /etc/passwd of the image is malformed", e.name)
	case found:
		u = User{UID: e.id, GID: e.gid, Name: e.name, Home: "/"}
		if strings.HasPrefix(e.home, "/") {
			u.Home = e.home
		}
	case w.user.name != "":
		return User{}, invalid(w.field, "no user %.64q in /etc/passwd of the image", w.user.name)
	}
	if w.group.given {
		g, found := db.group(w.group)
		switch {
		case found && g.bad:
			return User{}, invalid(w.field, "the entry of %.64q in /etc/group of the image is malformed", g.name)
		case found:
			u.GID = g.id
		case w.group.name != "":
			return User{}, invalid(w.field, "no group %.64q in /etc/group of the image", w.group.name)
		default:
			u.GID = w.group.id
		}
	}
	u.Groups = []uint32{u.GID}
	return u, nil
}

// users is what passwd(5) and group(5) of the image hold, unparsed: of some hundred lines one or two are of interest.
//
// github.com/moby/sys/user is not used for it, since there a line whose numbers cannot be read means ID 0: root.
type users struct{ passwd, groups []byte }

func readUsers(root *os.File) (users, error) {
	passwd, err := readFile(root, "/etc/passwd", maxUserFile)
	if err != nil {
		return users{}, err
	}
	groups, err := readFile(root, "/etc/group", maxUserFile)
	return users{passwd, groups}, err
}

// entry is a line of /etc/passwd or /etc/group. bad: its numbers cannot be read.
type entry struct {
	name, home string
	id, gid    uint32
	bad        bool
}

// user finds the first entry with the name or ID; a user that is not given is ID 0.
func (db users) user(r ref) (entry, bool) {
	for line := range bytes.Lines(db.passwd) {
		f := bytes.Split(bytes.TrimSpace(line), []byte(":"))
		if len(f) < 4 {
			if r.name != "" && string(f[0]) == r.name {
				return entry{name: r.name, bad: true}, true
			}
			continue
		}
		id, ok := parseID(f[2])
		gid, gok := parseID(f[3])
		if r.matches(f[0], id, ok) {
			e := entry{name: string(f[0]), id: id, gid: gid, bad: !ok || !gok}
			if len(f) > 5 {
				e.home = string(f[5])
			}
			return e, true
		}
	}
	return entry{}, false
}

// group finds the first entry with the name or ID.
func (db users) group(r ref) (entry, bool) {
	for line := range bytes.Lines(db.groups) {
		f := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), 4)
		if len(f) < 3 {
			if r.name != "" && string(f[0]) == r.name {
				return entry{name: r.name, bad: true}, true
			}
			continue
		}
		id, ok := parseID(f[2])
		if r.matches(f[0], id, ok) {
			return entry{name: string(f[0]), id: id, bad: !ok}, true
		}
	}
	return entry{}, false
}

// matches compares with a line's name and ID; hasID says whether the latter could be read.
func (r ref) matches(name []byte, id uint32, hasID bool) bool {
	if r.name != "" {
		return string(name) == r.name
	}
	return hasID && id == r.id
}

// groupsOf lists the groups that have the user among their members. Lines that cannot be read grant nothing.
func (db users) groupsOf(user string) []uint32 {
	if user == "" {
		return nil
	}
	var out []uint32
	for line := range bytes.Lines(db.groups) {
		f := bytes.Split(bytes.TrimSpace(line), []byte(":"))
		if len(f) < 4 || len(f[3]) == 0 {
			continue
		}
		id, ok := parseID(f[2])
		if !ok {
			continue
		}
		for member := range bytes.SplitSeq(f[3], []byte(",")) {
			if string(member) == user {
				out = append(out, id)
				break
			}
		}
	}
	return out
}

// unique drops repetitions and keeps the order.
func unique(ids []uint32) []uint32 {
	if len(ids) < 16 {
		out := ids[:0]
		for _, id := range ids {
			if !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
		return out
	}
	seen := make(map[uint32]bool, len(ids))
	return slices.DeleteFunc(ids, func(id uint32) bool {
		was := seen[id]
		seen[id] = true
		return was
	})
}
