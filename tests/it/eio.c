/* Stands between the daemon and fdatasync/fsync of its event log (or of files with EIO_WHAT in their path): fails the n-th call, takes its time,
 * or waits as long as a file is there. Built and preloaded by eio.rs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static atomic_long calls;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int is_meant(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    const char *what = getenv("EIO_WHAT");
    return strstr(path, what ? what : "/wal") != NULL;
}

/* Leaves word of whose call it was that failed. */
static void tell_whose(void) {
    const char *path = getenv("EIO_WHOSE");
    char name[16] = "";
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    prctl(PR_GET_NAME, name);
    fputs(name, file);
    fclose(file);
}

static int stand_between(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (!is_meant(fd)) return real(fd);
    long call = atomic_fetch_add(&calls, 1) + 1;
    usleep((useconds_t)number("EIO_DELAY_MS") * 1000);
    const char *gate = getenv("EIO_GATE");
    while (gate && access(gate, F_OK) == 0) usleep(1000);
    const char *fail = getenv("EIO_FAIL");
    if (call == number("EIO_AT") || (fail && access(fail, F_OK) == 0)) {
        tell_whose();
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fdatasync(int fd) { return stand_between("fdatasync", fd); }
int fsync(int fd) { return stand_between("fsync", fd); }
