/*
 * benchtool: what benchmarks run in a container.
 *
 *   pause                    say "ready" on stdout, then wait for SIGTERM
 *   true                     exit with 0
 *   flood BYTES LEN WRITE    write BYTES to stdout in lines of LEN, as fast as it goes, at most WRITE bytes at a time
 *   eat BYTES                touch BYTES of memory, then as pause
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int wait_for_term(void)
{
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (write(1, "ready\n", 6) != 6)	/* from now on a signal is not lost, not even to a process 1 */
		return 1;
	return sigwait(&set, &sig);
}

static int flood(long long left, size_t line, size_t most)
{
	static char buf[1 << 16];
	size_t full = line && line <= sizeof buf ? sizeof buf / line * line : 0;

	if (!full || !most)
		return 2;
	memset(buf, 'x', full);
	for (size_t end = line; end <= full; end += line)
		buf[end - 1] = '\n';
	for (size_t at = 0; left > 0; ) {
		size_t want = full - at < most ? full - at : most;
		ssize_t n = write(1, buf + at, left < (long long)want ? (size_t)left : want);

		if (n < 0)
			return 1;
		left -= n;
		at = (at + n) % full;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "pause";

	if (!strcmp(what, "true"))
		return 0;
	if (!strcmp(what, "flood") && argc == 5)
		return flood(atoll(argv[2]), atol(argv[3]), atol(argv[4]));
	if (!strcmp(what, "eat") && argc == 3) {
		size_t n = atoll(argv[2]);
		char *p = malloc(n);

		if (!p)
			return 1;
		memset(p, 1, n);
		return wait_for_term();
	}
	if (!strcmp(what, "pause"))
		return wait_for_term();
	fputs("usage: benchtool pause | true | flood BYTES LEN WRITE | eat BYTES\n", stderr);
	return 2;
}
