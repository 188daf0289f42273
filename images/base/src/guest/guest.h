/* The verbs of the guest tool and the exit statuses they share. */
#ifndef VMRUN_GUEST_H
#define VMRUN_GUEST_H

enum {
	EXIT_DONE = 0,
	EXIT_USAGE = 2,
	EXIT_MISMATCH = 3,
	EXIT_SHORT = 4,
	EXIT_DISK = 5,
	EXIT_REFUSED = 6,
	EXIT_NOT_OPENED = 7,
	EXIT_NETWORK = 8,
	EXIT_GONE = 9,
	EXIT_READ_ONLY = 10,
	EXIT_DENIED = 11,
};

/* Prints "vmrun-guest: <reason>" and exits. */
_Noreturn void fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Makes one line of text that came from elsewhere: nothing in it that a terminal would act on. */
void one_line(char *text);

/* Each takes what follows the verb on the command line and returns the exit status. */
int receive(int count, char **arguments);
int apply(int count, char **arguments);
int gate(int count, char **arguments);
int dial(int count, char **arguments);
int relay(int count, char **arguments);
int attach(int count, char **arguments);
int archive(int count, char **arguments);
int extract(int count, char **arguments);

#endif
