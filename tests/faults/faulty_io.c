/* Lets the n-th file operation below a folder fail. Loaded before libc (LD_PRELOAD), so that Python and
 * compiled libraries meet the same faulty disk. Built by test_disk.py; Linux.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { ONCE, FROM_NOW_ON, HALF, HALF_THEN_FULL };

static char below[4096];
static long wanted, seen, hit;
static int code, mode;

/* Operations below `folder` are counted from 1; number `number` fails with `error`. number 0: none. */
void fault_arm(const char *folder, long number, int error, int how) {
    snprintf(below, sizeof below, "%s", folder);
    wanted = number, code = error, mode = how, seen = hit = 0;
}

long fault_seen(void) { return seen; }
long fault_hit(void) { return hit; }

static int concerns(const char *path) { return wanted && below[0] && path && strstr(path, below) == path; }

static int concerns_fd(int fd) {
    char link[64], path[4096];
    if (!wanted) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return concerns(path);
}

static int concerns_at(int dir, const char *path) {
    return path[0] == '/' ? concerns(path) : dir == AT_FDCWD ? 0 : concerns_fd(dir);
}

/* 1 when this operation is to fail. `fills`: one that a full disk refuses. */
static int fails(int fills) {
    seen++;
    int now = seen == wanted || (mode == FROM_NOW_ON && seen > wanted && fills);
    if (mode >= HALF) now = 0;
    if (now) hit++, errno = code;
    return now;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                          \
    int name(const char *path, int flags, ...) {                                            \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        mode_t permission = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                                       \
        if (concerns(path) && fails(flags & O_CREAT)) return -1;                            \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, permission); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                        \
    int name(int dir, const char *path, int flags, ...) {                                   \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        mode_t permission = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                                       \
        if (concerns_at(dir, path) && fails(flags & O_CREAT)) return -1;                    \
        return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name))(dir, path, flags, permission); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t count) {
    if (concerns_fd(fd)) {
        if (fails(1)) return -1;
        if (mode >= HALF && seen == wanted && count > 1) {
            hit++;
            return REAL(write)(fd, data, count / 2);
        }
        if (mode == HALF_THEN_FULL && seen == wanted + 1) return errno = code, -1;
    }
    return REAL(write)(fd, data, count);
}

ssize_t read(int fd, void *data, size_t count) {
    return concerns_fd(fd) && fails(0) ? -1 : REAL(read)(fd, data, count);
}
int fsync(int fd) { return concerns_fd(fd) && fails(1) ? -1 : REAL(fsync)(fd); }
int ftruncate(int fd, off_t size) { return concerns_fd(fd) && fails(1) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return concerns_fd(fd) && fails(1) ? -1 : REAL(ftruncate64)(fd, size); }
int mkdir(const char *path, mode_t permission) {
    return concerns(path) && fails(1) ? -1 : REAL(mkdir)(path, permission);
}
int rename(const char *from, const char *to) { return concerns(to) && fails(1) ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return concerns(path) && fails(0) ? -1 : REAL(unlink)(path); }
int unlinkat(int dir, const char *path, int flags) {
    return concerns_at(dir, path) && fails(0) ? -1 : REAL(unlinkat)(dir, path, flags);
}
int rmdir(const char *path) { return concerns(path) && fails(0) ? -1 : REAL(rmdir)(path); }
