//go:build ignore
// (The go command would not have a C file beside Go ones otherwise.)

// Pid 1 of a pod, and the holder of new namespaces: see podinit.go for what it
// promises. There is no C library: it would be most of the program, and all of
// its memory.

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/limits.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>

#include "../system.h"

enum { SIGINT_ = 2, SIGTERM_ = 15, SIGCHLD_ = 17 };
enum { EINTR_ = 4, EINVAL_ = 22 };
enum { MNT_DETACH_ = 2 };
enum { STDIN = 0, REPORT = 3, FIRST_NAMESPACE = 4 };

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

// The report to the caller is collected here and written at once.
static char report[128];
static unsigned reported;

static void say(const char *s)
{
	while (*s && reported < sizeof(report))
		report[reported++] = *s++;
}

static void say_number(unsigned long n)
{
	char digits[24], *p = digits + sizeof(digits) - 1;

	for (*p = 0; n > 9; n /= 10)
		*--p = '0' + n % 10;
	*--p = '0' + n;
	say(p);
}

static void send_report(void)
{
	SYS(write, REPORT, report, reported, 0, 0);
}

// must ends the program, with a report, if a system call failed. It returns what the call did.
static long must(long ret, const char *what, const char *object)
{
	if (ret >= 0)
		return ret;
	say("error: ");
	say(what);
	say(object);
	say(": errno ");
	say_number(-ret);
	send_report();
	leave(1);
}

// Who pid 1 is and what confines it: Settings in podinit.go. What is not used of it takes no memory.
static struct {
	unsigned groups, instructions, uid, gid;
} settings;
static unsigned groups[NGROUPS_MAX];
static struct sock_filter filter[BPF_MAXINSNS];

static void read_all(void *to, unsigned long size)
{
	for (unsigned long done = 0; done < size;) {
		long n = must(SYS(read, STDIN, (char *)to + done, size - done, 0, 0), "read the settings", "");
		must(n ? 0 : -EINVAL_, "read all of the settings", "");
		done += n;
	}
}

static void read_settings(void)
{
	read_all(&settings, sizeof(settings));
	if (settings.groups > NGROUPS_MAX || settings.instructions > BPF_MAXINSNS)
		must(-EINVAL_, "make room for the settings", "");
	read_all(groups, settings.groups * sizeof(groups[0]));
	read_all(filter, settings.instructions * sizeof(filter[0]));
}

// empty_root puts us in a mount namespace that consists of an empty read-only directory.
static void empty_root(void)
{
	must(SYS(unshare, CLONE_NEWNS, 0, 0, 0, 0), "unshare mounts", "");
	must(SYS(mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0), "make mounts private", "");
	// Any directory will do that every node has.
	must(SYS(mount, "tmpfs", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=2,mode=555"),
	     "mount an empty directory", "");
	must(SYS(chdir, "/proc", 0, 0, 0, 0), "enter the empty directory", "");
	// The old root is put on top of the new one, and taken from there: pivot_root(2), NOTES.
	must(SYS(pivot_root, ".", ".", 0, 0, 0), "pivot_root", "");
	must(SYS(umount2, ".", MNT_DETACH_, 0, 0, 0), "unmount the old root", "");
	must(SYS(chdir, "/", 0, 0, 0, 0), "enter the new root", "");
}

// drop_privileges leaves us without any, for ever.
static void drop_privileges(int user_namespace)
{
	static const struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	static const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
	// Being uid 0 means nothing, nothing is kept or raised over a change of uid, and that cannot be undone.
	const long secure = (SECURE_ALL_BITS & ~issecure_mask(SECURE_KEEP_CAPS)) | SECURE_ALL_LOCKS;
	long uid = settings.uid, gid = settings.gid, err;

	err = SYS(setgroups, settings.groups, groups, 0, 0, 0);
	if (settings.groups || !user_namespace) // one may be set up to forbid it: user_namespaces(7)
		must(err, "setgroups", "");
	must(SYS(setresgid, gid, gid, gid, 0, 0), "setgid", "");
	for (int cap = 0; SYS(prctl, PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		must(SYS(prctl, PR_CAPBSET_DROP, cap, 0, 0, 0), "drop the bounding set", "");
	must(SYS(prctl, PR_SET_SECUREBITS, secure, 0, 0, 0), "set secure bits", "");
	must(SYS(setresuid, uid, uid, uid, 0, 0), "setuid", "");
	must(SYS(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "drop ambient capabilities", "");
	must(SYS(capset, &header, none, 0, 0, 0), "drop capabilities", "");
	must(SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs", "");
}

// ready_signals blocks those that end us, so that pid 1, which the kernel spares signals that it does not handle,
// can wait for them. That SIGCHLD is ignored makes the kernel reap what is orphaned.
static unsigned long ready_signals(void)
{
	static const struct {
		unsigned long handler, flags, restorer, mask;
	} standard, ignore = { .handler = 1 };
	static const unsigned long ends = 1UL << (SIGINT_ - 1) | 1UL << (SIGTERM_ - 1);

	must(SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &ends, 0, sizeof(ends), 0), "block signals", "");
	for (int n = 1; n <= 64; n++) // what is ignored here came from whoever started us
		SYS(rt_sigaction, n, &standard, 0, sizeof(ends), 0); // SIGKILL and SIGSTOP refuse it
	must(SYS(rt_sigaction, SIGCHLD_, &ignore, 0, sizeof(ends), 0), "ignore SIGCHLD", "");
	return ends;
}

// wait_for_end is all that pid 1 does.
static _Noreturn void wait_for_end(unsigned long ends)
{
	struct sock_fprog program = { .len = settings.instructions, .filter = filter };
	long err = 0;

	SYS(setsid, 0, 0, 0, 0, 0);
	SYS(close_range, 0, ~0U, 0, 0, 0);
	if (program.len)
		err = SYS(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
	while (!err) {
		err = SYS(rt_sigtimedwait, &ends, 0, 0, sizeof(ends), 0);
		if (err == -EINTR_)
			err = 0;
	}
	leave(err < 0 ? -err : 0);
}

// start_pause does everything that can fail before pid 1 exists.
static _Noreturn void start_pause(int kinds, char **kind)
{
	int user_namespace = kinds > 0 && same(kind[0], "user");
	unsigned long ends;
	long pid;

	read_settings();
	for (int i = 0; i < kinds; i++)
		must(SYS(setns, FIRST_NAMESPACE + i, 0, 0, 0, 0), "join ", kind[i]);
	empty_root();
	must(SYS(unshare, CLONE_NEWPID, 0, 0, 0, 0), "unshare pids", "");
	drop_privileges(user_namespace);
	must(SYS(prctl, PR_SET_NAME, "pause", 0, 0, 0), "set the name", "");
	ends = ready_signals();
	pid = must(SYS(clone, CLONE_PARENT | SIGCHLD_, 0, 0, 0, 0), "clone", "");
	if (pid == 0)
		wait_for_end(ends);
	say_number(pid);
	send_report();
	leave(0);
}

static _Noreturn void hold(void)
{
	char discard[64];
	long n;

	do
		n = SYS(read, STDIN, discard, sizeof(discard), 0, 0);
	while (n > 0 || n == -EINTR_);
	leave(n < 0);
}

// begin is given the stack as the kernel leaves it: the number of arguments, then their addresses.
_Noreturn void begin(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);

	if (argc == 2 && same(argv[1], "hold"))
		hold();
	if (argc >= 2 && same(argv[1], "pause"))
		start_pause(argc - 2, argv + 2);
	must(-EINVAL_, "unknown mode", "");
	leave(1);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl begin\n");
#endif
