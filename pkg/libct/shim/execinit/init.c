//go:build ignore
// (The go command would not have a C file beside Go ones otherwise.)

// The init of an exec: see execinit.go for what it promises, and order.go for what it is sent. There is no C library:
// the start of one would cost more than all that is done here.

#include <asm/ioctls.h>
#include <asm/stat.h>
#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>

#include "../system.h"

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;

enum { EPERM_ = 1, ENOENT_ = 2, EINTR_ = 4, E2BIG_ = 7, ENOEXEC_ = 8, ENOMEM_ = 12, EACCES_ = 13, ENOTDIR_ = 20, EISDIR_ = 21, EINVAL_ = 22,
       ETXTBSY_ = 26, EROFS_ = 30, ENOSYS_ = 38, ELOOP_ = 40, EPROTO_ = 71, ELIBBAD_ = 80 };
enum { RDONLY = 00, WRONLY = 01, RDWR = 02, NOCTTY = 0400, NONBLOCK = 04000, CLOEXEC = 02000000, PATH_ONLY = 010000000 };
enum { SHIM = 3, TARGET, PROGRAM, CONSOLE }; // CONSOLE is there if there is to be a terminal
enum { MODE_TYPE = 0170000, MODE_REGULAR = 0100000, MODE_DIRECTORY = 0040000, MODE_CHAR = 0020000, MODE_EXECUTABLE = 0111 };

// The limits of an order; order.go has the same.
enum { MAX_ORDER = 1 << 20, MAX_STRINGS = 32768 };

// order begins what the shim sends; the numbers of the rest stand at its end.
struct order {
	u64 bounding, effective, permitted, inheritable, ambient;
	u32 size, flags, namespaces, uid, gid, umask, filter_flags;
	u16 rows, cols;
	u32 rlimits, filter, groups, cgroups, args, env, candidates, unused;
};

enum { NO_NEW_PRIVS = 1, TERMINAL = 2, SET_GROUPS = 4, SET_UMASK = 8, FIND_HOME = 16, BARE_NAME = 32 };

struct limit {
	u64 kind, soft, hard;
};

// report is what we send.
struct report {
	u32 kind;
	int value; // a pid, or an errno
	u32 index; // of the limit
	char what[52];
};

enum { STARTED = 1, READY, FAILED, NO_COMMAND };

static union {
	struct order order;
	char bytes[MAX_ORDER + 1];
} message;
static struct order *const order = &message.order;

// The parts of the message.
static struct limit *limits;
static struct sock_filter *filter;
static u32 *groups;
static char *oom_score_adj, *keyring, *label, *profile, *cwd;
static char *strings[MAX_STRINGS + 8], **cgroups, **args, **env, **candidates;

static void tell(u32 kind, int value, u32 index, const char *what)
{
	struct report r;

	for (u32 i = 0; i < sizeof(r.what); i++)
		r.what[i] = *what ? *what++ : 0;
	r.kind = kind, r.value = value, r.index = index;
	SYS(write, SHIM, &r, sizeof(r), 0, 0);
}

// must ends the program, with a report, if a system call failed. It returns what the call did.
static long must(long ret, const char *what)
{
	if (ret >= 0)
		return ret;
	tell(FAILED, -ret, 0, what);
	leave(255);
}

static long length(const char *s)
{
	const char *p = s;

	while (*p)
		p++;
	return p - s;
}

// write_file gives a file of the kernel one line.
static long write_file(long dir, const char *path, const char *line)
{
	long fd = SYS(openat, dir, path, WRONLY | CLOEXEC, 0, 0), err;

	if (fd < 0)
		return fd;
	err = SYS(write, fd, line, length(line), 0, 0);
	SYS(close, fd, 0, 0, 0, 0);
	return err;
}

// ---- the order ----

static void receive(void)
{
	u32 have = 0, want = sizeof(struct order);
	long n;

	while (have < want) {
		n = SYS(read, SHIM, message.bytes + have, want - have, 0, 0);
		if (n == -EINTR_)
			continue;
		if (n <= 0)
			leave(255); // the shim is gone
		have += n;
		if (have == sizeof(struct order)) {
			want = order->size;
			if (want < have || want > MAX_ORDER)
				must(-EPROTO_, "read the order");
		}
	}
}

static char *next, *end;

static char *string(void)
{
	char *s = next;

	if (next >= end)
		must(-EPROTO_, "read the order");
	while (*next)
		next++;
	next++;
	return s;
}

static char **vector(char ***free, u32 count)
{
	char **v = *free;

	for (u32 i = 0; i < count; i++)
		v[i] = string();
	*free = v + count + 2; // the end, and what may be added
	return v;
}

// parse finds the parts. Their counts cannot sum up to more than an u64 holds.
static void parse(void)
{
	char **free = strings;
	u64 fixed = sizeof(struct order) + (u64)order->rlimits * sizeof(struct limit) + (u64)order->filter * sizeof(struct sock_filter) +
		    (u64)order->groups * sizeof(u32);

	if (fixed > order->size || (u64)order->cgroups + order->args + order->env + order->candidates > MAX_STRINGS)
		must(-EPROTO_, "read the order");
	limits = (struct limit *)(message.bytes + sizeof(struct order));
	filter = (struct sock_filter *)(limits + order->rlimits);
	groups = (u32 *)(filter + order->filter);
	next = (char *)(groups + order->groups);
	end = message.bytes + order->size; // where a zero stands
	oom_score_adj = string();
	keyring = string();
	label = string();
	profile = string();
	cwd = string();
	cgroups = vector(&free, order->cgroups);
	args = vector(&free, order->args);
	env = vector(&free, order->env);
	candidates = vector(&free, order->candidates);
}

// ---- in the shim's namespaces ----

// reset_affinity allows all CPUs that the cgroups do, not only those of the shim.
static void reset_affinity(void)
{
	static unsigned char all[1024]; // 8192 CPUs, the most that Linux is built for

	for (u32 i = 0; i < sizeof(all); i++)
		all[i] = 0xff;
	SYS(sched_setaffinity, 0, sizeof(all), all, 0, 0);
}

static void join_cgroups(void)
{
	// On cgroup v1 a thread that moves itself waits for no grace period of RCU, unlike one that is moved by its pid. In a
	// cgroup that has all the processes that it may have another can be moved, but not be made.
	for (char **file = cgroups; *file; file++)
		must(write_file(AT_FDCWD, *file, "0"), "join the container's cgroup");
}

static void join_namespaces(void)
{
	u32 others = order->namespaces & ~(CLONE_NEWPID | CLONE_NEWUSER);

	// First those which the container's user namespace may not own, such as the node's network, with the shim's privileges.
	must(SYS(setns, TARGET, others, 0, 0, 0), "join the container's namespaces");
	if (order->namespaces & CLONE_NEWUSER) {
		must(SYS(setns, TARGET, CLONE_NEWUSER, 0, 0, 0), "join the container's user namespace");
		must(SYS(setresuid, 0, 0, 0, 0, 0), "become root of the user namespace");
	}
}

static void set_limits(void)
{
	for (u32 i = 0; i < order->rlimits; i++) {
		struct {
			u64 soft, hard;
		} now = { limits[i].soft, limits[i].hard };
		long err = SYS(prlimit64, 0, limits[i].kind, &now, 0, 0);

		if (err < 0) {
			tell(FAILED, -err, i, "process.rlimits");
			leave(255);
		}
	}
}

// ---- in the container ----

// reset_signals gives each signal its default action, whatever the shim ignores.
static void reset_signals(void)
{
	static const struct {
		u64 handler, flags, restorer, mask;
	} byDefault;

	for (int signal = 1; signal <= 64; signal++)
		SYS(rt_sigaction, signal, &byDefault, 0, sizeof(u64), 0);
	SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &byDefault.mask, 0, sizeof(u64), 0);
}

static void join_keyring(long proc)
{
	long err;

	if (!*keyring)
		return;
	if (*label)
		must(write_file(proc, "thread-self/attr/keycreate", label), "label the session keyring");
	err = SYS(keyctl, KEYCTL_JOIN_SESSION_KEYRING, keyring, 0, 0, 0);
	if (err != -ENOSYS_)
		must(err, "join the session keyring");
}

static void set_labels(long proc)
{
	long err;

	if (*label)
		must(write_file(proc, "thread-self/attr/exec", label), "set the SELinux label");
	if (*profile) {
		err = write_file(proc, "thread-self/attr/apparmor/exec", profile);
		if (err == -ENOENT_) // a kernel before 5.1
			err = write_file(proc, "thread-self/attr/exec", profile);
		must(err, "set the AppArmor profile");
	}
}

static void number(char *to, long n)
{
	char digits[24], *p = digits + sizeof(digits) - 1;

	for (*p = 0; n > 9; n /= 10)
		*--p = '0' + n % 10;
	*--p = '0' + n;
	while ((*to++ = *p++))
		;
}

// open_ptmx opens a terminal of the container's devpts. What stands at the path is the container's business, so it is
// looked at before it is opened (a devpts has one inode 2), and a link does not lead by way of our descriptors.
static long open_ptmx(long proc)
{
	static const struct open_how how = { .flags = PATH_ONLY | O_NOFOLLOW | CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS };
	static char path[40] = "self/fd/";
	long found = must(SYS(openat2, AT_FDCWD, "/dev/pts/ptmx", &how, sizeof(how), 0), "open /dev/pts/ptmx"), master;
	struct stat st;
	long fs[32] = { 0 }; // struct statfs, which begins with the type

	must(SYS(fstat, found, &st, 0, 0, 0), "stat /dev/pts/ptmx");
	must(SYS(fstatfs, found, fs, 0, 0, 0), "statfs /dev/pts/ptmx");
	if (fs[0] != DEVPTS_SUPER_MAGIC || st.st_ino != 2 || (st.st_mode & MODE_TYPE) != MODE_CHAR || st.st_rdev != (5 << 8 | 2))
		must(-EACCES_, "/dev/pts/ptmx is not that of a devpts");
	number(path + 8, found);
	master = must(SYS(openat, proc, path, RDWR | NOCTTY | CLOEXEC, 0, 0), "open a terminal");
	SYS(close, found, 0, 0, 0, 0);
	return master;
}

// send_console passes the master to the shim: cmsg(3).
static void send_console(int master)
{
	struct {
		const char *base;
		u64 size;
	} data = { "/dev/pts", 8 }; // something has to go along
	struct {
		u64 size;
		int level, type, fd, unused;
	} control = { 20, 1 /* SOL_SOCKET */, 1 /* SCM_RIGHTS */, master, 0 };
	struct {
		void *name;
		u64 name_size;
		void *data;
		u64 data_count;
		void *control;
		u64 control_size;
		u64 flags;
	} header = { 0, 0, &data, 1, &control, sizeof(control), 0 };

	must(SYS(sendmsg, CONSOLE, &header, 0, 0, 0), "pass the terminal");
}

static void open_terminal(long proc)
{
	long master = open_ptmx(proc), slave;
	int locked = 0;
	u16 size[4] = { order->rows, order->cols, 0, 0 };

	must(SYS(ioctl, master, TIOCSPTLCK, &locked, 0, 0), "unlock the terminal");
	if (order->rows && order->cols)
		must(SYS(ioctl, master, TIOCSWINSZ, size, 0, 0), "set the terminal's size");
	slave = must(SYS(ioctl, master, TIOCGPTPEER, RDWR | NOCTTY | CLOEXEC, 0, 0), "open the terminal's other end");
	send_console(master);
	for (int fd = 0; fd < 3; fd++)
		must(SYS(dup3, slave, fd, 0, 0, 0), "use the terminal");
	must(SYS(ioctl, 0, TIOCSCTTY, 0, 0, 0), "control the terminal");
}

// field finds a field of a line of /etc/passwd; the end of the line, which is a zero, if it has fewer.
static char *field(char *line, int index)
{
	for (; index && *line; line++)
		index -= *line == ':';
	return line;
}

static int has_uid(char *line, u32 uid)
{
	char *p = field(line, 2);
	u64 n = 0;

	for (; *p && *p != ':'; p++) {
		if (*p < '0' || *p > '9')
			return uid == 0; // a field that is no number counts as 0, as does one that is missing
		if (n < 1UL << 40)
			n = n * 10 + (*p - '0');
	}
	return n == uid;
}

// home_of makes the variable of a line, in place: the five colons before the field leave room for it.
static char *home_of(char *line)
{
	static const char name[] = "HOME=";
	char *home = field(line, 5), *p = home;

	if (!*home)
		return (char *)name;
	while (*p && *p != ':')
		p++;
	*p = 0;
	for (int i = 0; i < 5; i++)
		home[i - 5] = name[i];
	return home - 5;
}

static int blank(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

// trimmed ends a line and takes the blanks off its ends.
static char *trimmed(char *line, char *end)
{
	while (end > line && blank(end[-1]))
		end--;
	*end = 0;
	while (blank(*line))
		line++;
	return line;
}

// find_home looks the user up in the container's /etc/passwd; / if it is not there.
static char *find_home(void)
{
	static char buffer[65536];
	long fd = SYS(openat, AT_FDCWD, "/etc/passwd", RDONLY | NONBLOCK | NOCTTY | CLOEXEC, 0, 0), got = 1;
	struct stat st;
	u32 have = 0;

	if (fd < 0 || SYS(fstat, fd, &st, 0, 0, 0) < 0 || (st.st_mode & MODE_TYPE) != MODE_REGULAR)
		got = 0;
	while (got > 0 && have < sizeof(buffer) - 1) {
		char *line = buffer, *p;

		got = SYS(read, fd, buffer + have, sizeof(buffer) - 1 - have, 0, 0);
		if (got < 0)
			break;
		have += got;
		if (got == 0 && have > 0)
			buffer[have++] = '\n'; // the last line may lack it
		for (p = buffer; p < buffer + have; p++) {
			if (*p != '\n')
				continue;
			line = trimmed(line, p);
			if (*line && has_uid(line, order->uid))
				return home_of(line);
			line = p + 1;
		}
		have = buffer + have - line;
		for (u32 i = 0; i < have; i++)
			buffer[i] = line[i];
	}
	return "HOME=/";
}

static void load_filter(void)
{
	struct sock_fprog program = { order->filter, filter };

	if (order->filter)
		must(SYS(seccomp, SECCOMP_SET_MODE_FILTER, order->filter_flags, &program, 0, 0), "load the seccomp filter");
}

// give_stdio makes the user the owner of his streams, where that can be done.
static void give_stdio(void)
{
	struct stat st;
	long err;

	for (int fd = 0; fd < 3; fd++) {
		must(SYS(fstat, fd, &st, 0, 0, 0), "stat stdio");
		if (st.st_uid == order->uid || ((st.st_mode & MODE_TYPE) == MODE_CHAR && st.st_rdev == (1 << 8 | 3)))
			continue; // his already, or /dev/null
		err = SYS(fchown, fd, order->uid, -1, 0, 0);
		if (err != -EPERM_ && err != -EROFS_)
			must(err, "change the owner of stdio");
	}
}

static void drop_bounding_set(void)
{
	for (int cap = 0; SYS(prctl, PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(order->bounding >> cap & 1))
			must(SYS(prctl, PR_CAPBSET_DROP, cap, 0, 0, 0), "drop the bounding set");
}

static void set_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {
		{ order->effective, order->permitted, order->inheritable },
		{ order->effective >> 32, order->permitted >> 32, order->inheritable >> 32 },
	};

	must(SYS(capset, &header, data, 0, 0, 0), "set capabilities");
	must(SYS(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient capabilities");
	// One that cannot be raised, since it is not inheritable, is left out.
	for (int cap = 0; cap < 64; cap++)
		if (order->ambient >> cap & 1)
			SYS(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
}

static void become_user(void)
{
	if (order->flags & SET_GROUPS)
		must(SYS(setgroups, order->groups, groups, 0, 0, 0), "process.user.additionalGids");
	must(SYS(setresgid, order->gid, order->gid, order->gid, 0, 0), "process.user.gid");
	must(SYS(setresuid, order->uid, order->uid, order->uid, 0, 0), "process.user.uid");
}

// check_cwd refuses a directory outside of the container's root, to which a descriptor could have led (CVE-2024-21626).
static void check_cwd(void)
{
	static char path[4096];

	must(SYS(getcwd, path, sizeof(path), 0, 0, 0), "process.cwd"); // ENOENT if it is not reachable from the root
	if (path[0] != '/')
		must(-EACCES_, "process.cwd");
}

// take_user does what needs privileges before it lets go of them.
static void take_user(void)
{
	long err = *cwd ? SYS(chdir, cwd, 0, 0, 0, 0) : 0;
	int again = err == -EACCES_ || err == -EPERM_; // the user may enter what root may not, such as a mount that squashes root

	if (!again)
		must(err, "process.cwd");
	drop_bounding_set();
	must(SYS(prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities");
	give_stdio();
	become_user();
	if (again)
		must(SYS(chdir, cwd, 0, 0, 0, 0), "process.cwd");
	check_cwd();
	must(SYS(prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0), "keep no capabilities");
	set_capabilities();
}

// executable tells why a file cannot be executed, 0 if it can.
static long executable(const char *path, const char **what)
{
	struct stat st;
	long err = SYS(newfstatat, AT_FDCWD, path, &st, 0, 0);

	*what = "stat";
	if (err < 0)
		return err;
	*what = "";
	if ((st.st_mode & MODE_TYPE) == MODE_DIRECTORY)
		return -EISDIR_;
	err = SYS(faccessat2, AT_FDCWD, path, 1 /* X_OK */, AT_EACCESS, 0);
	if (err == -ENOSYS_ || err == -EPERM_) // a filter does not let us ask
		err = st.st_mode & MODE_EXECUTABLE ? 0 : -EACCES_;
	return err;
}

// find_command returns the index of the candidate to execute.
static u32 find_command(void)
{
	const char *what = "";
	long err = -ENOENT_;

	for (u32 i = 0; i < order->candidates; i++) {
		err = executable(candidates[i], &what);
		if (err == 0 && order->flags & BARE_NAME && candidates[i][0] != '/') {
			tell(NO_COMMAND, 0, 0, "dot"); // found by a relative part of PATH
			leave(255);
		}
		if (err == 0)
			return i;
	}
	tell(NO_COMMAND, -err, 0, order->flags & BARE_NAME ? "path" : what);
	leave(255);
}

// reason is the text of an errno of execve(2), in Go's words.
static const char *reason(int err)
{
	static const struct {
		int err;
		const char *text;
	} known[] = {
		{ EPERM_, "operation not permitted" },
		{ ENOENT_, "no such file or directory" },
		{ E2BIG_, "argument list too long" },
		{ ENOEXEC_, "exec format error" },
		{ ENOMEM_, "cannot allocate memory" },
		{ EACCES_, "permission denied" },
		{ ENOTDIR_, "not a directory" },
		{ EINVAL_, "invalid argument" },
		{ ETXTBSY_, "text file busy" },
		{ ELOOP_, "too many levels of symbolic links" },
		{ ELIBBAD_, "accessing a corrupted shared library" },
	};

	for (u32 i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].err == err)
			return known[i].text;
	return "it cannot be executed";
}

// complain tells the user, on stderr, that the command is there and cannot be executed. To the shim the exec has begun
// by then, and ends with code 255.
static _Noreturn void complain(const char *path, int err)
{
	static char words[4096 + 64]; // execve takes no longer path
	const char *parts[] = { "exec ", path, ": ", reason(err), "\n" };
	u32 n = 0;

	for (u32 i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		for (const char *p = parts[i]; *p && n < sizeof(words); p++)
			words[n++] = *p;
	SYS(write, 2, words, n, 0, 0);
	leave(255);
}

// enter is what the process does that becomes the command. It is visible in the container from its first instruction.
static _Noreturn void enter(long proc)
{
	u32 command;
	long err;

	join_cgroups();
	reset_affinity();
	set_limits();
	join_namespaces();
	must(SYS(setsid, 0, 0, 0, 0, 0), "begin a session");
	must(SYS(setresgid, 0, 0, 0, 0, 0), "become group 0");
	must(SYS(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0), "hide"); // a change of ids may have undone it
	join_keyring(proc);
	if (order->flags & TERMINAL)
		open_terminal(proc);
	if (order->flags & NO_NEW_PRIVS)
		must(SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "process.noNewPrivileges");
	if (order->flags & SET_UMASK)
		SYS(umask, order->umask, 0, 0, 0, 0);
	reset_signals();
	set_labels(proc);
	// Nothing of the node is open when paths that others have chosen are followed.
	must(SYS(close_range, TARGET, ~0U, 0, 0, 0), "close descriptors");
	if (order->flags & FIND_HOME)
		env[order->env] = find_home();
	tell(READY, 0, 0, "");
	// To load it takes CAP_SYS_ADMIN or no_new_privs. The later the better: the container may be forbidden what we do.
	if (!(order->flags & NO_NEW_PRIVS))
		load_filter();
	take_user();
	command = find_command();
	if (order->flags & NO_NEW_PRIVS)
		load_filter();
	err = SYS(execve, candidates[command], args, env, 0, 0);
	complain(candidates[command], -err);
}

_Noreturn void begin(void)
{
	long proc = -1, pid;

	receive();
	parse();
	SYS(close, PROGRAM, 0, 0, 0, 0);
	must(SYS(close_range, order->flags & TERMINAL ? CONSOLE + 1 : CONSOLE, ~0U, 0, 0, 0), "close descriptors");
	must(SYS(fcntl, SHIM, 2 /* F_SETFD */, 1 /* FD_CLOEXEC */, 0, 0), "close at exec");
	SYS(prctl, PR_SET_NAME, "criserver-exec", 0, 0, 0);
	if (*oom_score_adj)
		must(write_file(AT_FDCWD, "/proc/self/oom_score_adj", oom_score_adj), "process.oomScoreAdj");
	// From here no process of the container may look at us or trace us, whatever user it is (CVE-2016-9962).
	must(SYS(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0), "hide");
	if (*label || *profile || order->flags & TERMINAL) // the node's, since the container could forge its own
		proc = must(SYS(openat, AT_FDCWD, "/proc", PATH_ONLY | O_DIRECTORY | CLOEXEC, 0, 0), "open /proc");
	if (order->namespaces & CLONE_NEWPID)
		must(SYS(setns, TARGET, CLONE_NEWPID, 0, 0, 0), "join the container's PID namespace");
	pid = must(SYS(clone, CLONE_PARENT | 17 /* SIGCHLD */, 0, 0, 0, 0), "clone");
	if (pid == 0)
		enter(proc);
	tell(STARTED, pid, 0, "");
	leave(0);
}

// The stack that the kernel leaves is of no interest: there are no arguments.
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tbl begin\n");
#endif
