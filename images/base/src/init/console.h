/* The only way the init speaks outside the control port: lines on the kernel's console. */
#ifndef VMRUN_CONSOLE_H
#define VMRUN_CONSOLE_H

/* Makes /dev/console standard input, output and error. */
void console_attach(void);

/* Prints "vmrun-init: <message>". */
void console_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Prints "vmrun-init: fatal: <message>" and powers off: a guest that cannot keep the contract
 * must not linger. */
_Noreturn void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Kills what runs and powers off. There is nothing to sync: no file system is writable but tmpfs. */
_Noreturn void power_off(void);

#endif
