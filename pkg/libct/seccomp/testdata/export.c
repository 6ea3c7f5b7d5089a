// Export makes the program that libseccomp makes of a filter. It reads the
// filter from stdin, one word or number after the other:
//
//	default ACTION | arch TOKEN | optimize LEVEL
//	rule ACTION NAME N, and N times: ARGUMENT COMPARISON OPERAND1 OPERAND2
//
// and writes the program to stdout. With "numbers" as the first word and the
// token of an architecture as the second, it only writes those of the names
// that follow that libseccomp knows there, and their numbers.
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>

static void fail(const char *what, int rc)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-rc));
	exit(1);
}

static void rule(scmp_filter_ctx ctx)
{
	struct scmp_arg_cmp args[6] = { 0 };
	char name[64];
	uint32_t action;
	unsigned n, i;
	int rc;

	if (scanf("%" SCNu32 " %63s %u", &action, name, &n) != 3 || n > 6)
		fail("rule", -EINVAL);
	for (i = 0; i < n; i++) {
		unsigned arg, op;
		if (scanf("%u %u %" SCNu64 " %" SCNu64, &arg, &op, &args[i].datum_a, &args[i].datum_b) != 4)
			fail(name, -EINVAL);
		args[i].arg = arg;
		args[i].op = op;
	}
	rc = seccomp_rule_add_array(ctx, action, seccomp_syscall_resolve_name(name), n, args);
	if (rc < 0)
		fail(name, rc);
}

static void numbers(uint32_t arch)
{
	char name[64];

	while (scanf("%63s", name) == 1) {
		int number = seccomp_syscall_resolve_name_arch(arch, name);
		if (number >= 0 || (number <= -100 && number > -300)) // a call of socketcall or ipc
			printf("%s %d\n", name, number);
	}
}

int main(void)
{
	char word[64];
	uint32_t number;
	scmp_filter_ctx ctx = NULL;
	int rc = 0;

	while (scanf("%63s", word) == 1) {
		if (!strcmp(word, "rule")) {
			rule(ctx);
			continue;
		}
		if (scanf("%" SCNu32, &number) != 1)
			fail(word, -EINVAL);
		if (!strcmp(word, "numbers")) {
			numbers(number);
			return 0;
		} else if (!strcmp(word, "default"))
			rc = (ctx = seccomp_init(number)) ? 0 : -EINVAL;
		else if (!strcmp(word, "arch"))
			rc = seccomp_arch_add(ctx, number);
		else if (!strcmp(word, "optimize"))
			rc = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, number);
		else
			rc = -EINVAL;
		if (rc < 0 && rc != -EEXIST)
			fail(word, rc);
	}
	rc = seccomp_export_bpf(ctx, 1);
	if (rc < 0)
		fail("export", rc);
	return 0;
}
