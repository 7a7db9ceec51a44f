/* Stands between a process and the C library (LD_PRELOAD): counts the calls that change files below one folder, and at
 * the one it is told to, kills the process, lets the disk be full or broken, or tears the write. It can also record
 * every such call with its bytes, from which powercut.py makes the states that a power cut could leave.
 *
 * Nothing happens before faults_arm() is called, which the benchmark does in the child that runs the command. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FULL, BROKEN };
enum { KEEP = 0, FAIL = 1, HALF = 2 };

static char under[PATH_MAX];
static size_t under_length;
static int armed, mode, record = -1, full;
static long at, calls;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void faults_arm(const char *folder, int what, long number, int recording) {
    snprintf(under, sizeof under, "%s", folder);
    under_length = strlen(under);
    mode = what, at = number, calls = 0, full = 0, record = recording;
    armed = 1;
}

void faults_disarm(void) { armed = 0; }

long faults_calls(void) { return calls; }

static int is_under(const char *path) { return armed && strncmp(path, under, under_length) == 0; }

/* The absolute path of a name; names are used as they are, for ours are absolute or relative to the working folder. */
static const char *absolute(int folder, const char *path, char *buffer) {
    if (path[0] == '/') return path;
    char link[64];
    if (folder == AT_FDCWD) {
        if (!getcwd(buffer, PATH_MAX)) return path;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, buffer, PATH_MAX - 1);
        if (length < 0) return path;
        buffer[length] = 0;
    }
    size_t length = strlen(buffer);
    snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    return buffer;
}

static int file_is_under(int file) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_under(path);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* One line for each call, then its names and its bytes. */
static void note(const char *kind, long inode, long offset, const char *one, const char *other, const void *data,
                 size_t length) {
    if (record < 0) return;
    char line[PATH_MAX * 2 + 128];
    int size = snprintf(line, sizeof line, "%ld %s %ld %ld %zu %zu %zu\n%s%s", calls, kind, inode, offset,
                        strlen(one), strlen(other), length, one, other);
    syscall(SYS_write, record, line, (size_t)size);
    if (length) syscall(SYS_write, record, data, length);
}

static long inode_of(int file) {
    struct stat status;
    return fstat(file, &status) == 0 ? (long)status.st_ino : -1;
}

/* Decide what becomes of a call that changes something. `grows`: it needs room on the disk. */
static int decide(int grows, int tearable) {
    int fate = KEEP;
    pthread_mutex_lock(&lock);
    calls++;
    if (mode == KILL && calls == at) die();
    if (mode == TEAR && calls == at) {
        if (!tearable) die();
        fate = HALF;
    }
    if (mode == BROKEN && calls == at) errno = EIO, fate = FAIL;
    if (mode == FULL && calls >= at && grows) {
        errno = ENOSPC;
        fate = !full && tearable ? HALF : FAIL; /* what just fits is written */
        full = 1;
    }
    pthread_mutex_unlock(&lock);
    return fate;
}

#define REAL(type, name, ...)                                      \
    static type (*real)(__VA_ARGS__);                              \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t wrote(int file, const void *data, ssize_t length, off_t offset) {
    if (length > 0 && record >= 0) {
        if (offset < 0) {
            int flags = fcntl(file, F_GETFL);
            offset = (flags & O_APPEND ? lseek(file, 0, SEEK_END) : lseek(file, 0, SEEK_CUR)) - length;
        }
        note("write", inode_of(file), offset, "", "", data, (size_t)length);
    }
    return length;
}

ssize_t write(int file, const void *data, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!file_is_under(file)) return real(file, data, length);
    int fate = decide(1, length > 1);
    if (fate == FAIL) return -1;
    ssize_t done = real(file, data, fate == HALF ? length / 2 : length);
    if (fate == HALF && mode == TEAR) die();
    return wrote(file, data, done, -1);
}

static ssize_t write_at(ssize_t (*real)(int, const void *, size_t, off_t), int file, const void *data, size_t length,
                        off_t offset) {
    if (!file_is_under(file)) return real(file, data, length, offset);
    struct stat status;
    int grows = fstat(file, &status) != 0 || offset + (off_t)length > status.st_size;
    int fate = decide(grows, length > 1);
    if (fate == FAIL) return -1;
    ssize_t done = real(file, data, fate == HALF ? length / 2 : length, offset);
    if (fate == HALF && mode == TEAR) die();
    return wrote(file, data, done, offset);
}

ssize_t pwrite(int file, const void *data, size_t length, off_t offset) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return write_at(real, file, data, length, offset);
}

ssize_t pwrite64(int file, const void *data, size_t length, off_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return write_at(real, file, data, length, offset);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!file_is_under(file)) return real(file, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(file, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}

/* Copies inside the kernel are refused, as some file systems do, and so come through write(). */
ssize_t sendfile(int to, int from, off_t *offset, size_t length) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    if (file_is_under(to)) return errno = EINVAL, -1;
    return real(to, from, offset, length);
}

ssize_t sendfile64(int to, int from, off_t *offset, size_t length) {
    REAL(ssize_t, "sendfile64", int, int, off_t *, size_t);
    if (file_is_under(to)) return errno = EINVAL, -1;
    return real(to, from, offset, length);
}

ssize_t copy_file_range(int from, off_t *one, int to, off_t *other, size_t length, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    if (file_is_under(to)) return errno = EXDEV, -1;
    return real(from, one, to, other, length, flags);
}

static int flush(int (*real)(int), int file) {
    if (!file_is_under(file)) return real(file);
    if (decide(0, 0) == FAIL) return -1;
    int result = real(file);
    note("sync", inode_of(file), 0, "", "", 0, 0);
    return result;
}

int fsync(int file) {
    REAL(int, "fsync", int);
    return flush(real, file);
}

int fdatasync(int file) {
    REAL(int, "fdatasync", int);
    return flush(real, file);
}

static int cut(int (*real)(int, off_t), int file, off_t length) {
    if (!file_is_under(file)) return real(file, length);
    struct stat status;
    if (decide(fstat(file, &status) == 0 && length > status.st_size, 0) == FAIL) return -1;
    int result = real(file, length);
    if (result == 0) note("cut", inode_of(file), length, "", "", 0, 0);
    return result;
}

int ftruncate(int file, off_t length) {
    REAL(int, "ftruncate", int, off_t);
    return cut(real, file, length);
}

int ftruncate64(int file, off_t length) {
    REAL(int, "ftruncate64", int, off_t);
    return cut(real, file, length);
}

static int open_at(int folder, const char *name, int flags, mode_t permissions) {
    char buffer[PATH_MAX];
    const char *path = armed ? absolute(folder, name, buffer) : name;
    struct stat status;
    int creates = is_under(path) && (flags & O_CREAT) && lstat(path, &status) != 0;
    int empties = is_under(path) && (flags & O_TRUNC) && !creates;
    if ((creates || empties) && decide(creates, 0) == FAIL) return -1;
    int file = (int)syscall(SYS_openat, folder, name, flags, permissions);
    if (file >= 0 && creates) note("create", inode_of(file), 0, path, "", 0, 0);
    if (file >= 0 && empties) note("cut", inode_of(file), 0, "", "", 0, 0);
    return file;
}

#define PERMISSIONS(flags)                        \
    mode_t permissions = 0;                       \
    if ((flags) & (O_CREAT | O_TMPFILE)) {        \
        va_list more;                             \
        va_start(more, flags);                    \
        permissions = (mode_t)va_arg(more, int);  \
        va_end(more);                             \
    }

int open(const char *path, int flags, ...) {
    PERMISSIONS(flags)
    return open_at(AT_FDCWD, path, flags, permissions);
}

int open64(const char *path, int flags, ...) {
    PERMISSIONS(flags)
    return open_at(AT_FDCWD, path, flags | O_LARGEFILE, permissions);
}

int openat(int folder, const char *path, int flags, ...) {
    PERMISSIONS(flags)
    return open_at(folder, path, flags, permissions);
}

int openat64(int folder, const char *path, int flags, ...) {
    PERMISSIONS(flags)
    return open_at(folder, path, flags | O_LARGEFILE, permissions);
}

int renameat2(int from, const char *one, int to, const char *other, unsigned flags) {
    char first[PATH_MAX], second[PATH_MAX];
    const char *old = armed ? absolute(from, one, first) : one, *new = armed ? absolute(to, other, second) : other;
    int ours = is_under(old) || is_under(new);
    if (ours && decide(0, 0) == FAIL) return -1;
    int result = (int)syscall(SYS_renameat2, from, one, to, other, flags);
    if (result == 0 && ours) note(flags & RENAME_EXCHANGE ? "exchange" : "rename", 0, 0, old, new, 0, 0);
    return result;
}

int rename(const char *one, const char *other) { return renameat2(AT_FDCWD, one, AT_FDCWD, other, 0); }

int renameat(int from, const char *one, int to, const char *other) { return renameat2(from, one, to, other, 0); }

int unlinkat(int folder, const char *name, int flags) {
    char buffer[PATH_MAX];
    const char *path = armed ? absolute(folder, name, buffer) : name;
    struct stat status;
    int ours = is_under(path) && fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    if (ours && decide(0, 0) == FAIL) return -1;
    int result = (int)syscall(SYS_unlinkat, folder, name, flags);
    if (result == 0 && ours) note("unlink", 0, 0, path, "", 0, 0);
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int remove(const char *path) {
    struct stat status;
    return unlinkat(AT_FDCWD, path, lstat(path, &status) == 0 && S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0);
}

int linkat(int from, const char *one, int to, const char *other, int flags) {
    char first[PATH_MAX], second[PATH_MAX];
    const char *old = armed ? absolute(from, one, first) : one, *new = armed ? absolute(to, other, second) : other;
    int ours = is_under(new);
    if (ours && decide(1, 0) == FAIL) return -1;
    int result = (int)syscall(SYS_linkat, from, one, to, other, flags);
    if (result == 0 && ours) note("link", 0, 0, old, new, 0, 0);
    return result;
}

int link(const char *one, const char *other) { return linkat(AT_FDCWD, one, AT_FDCWD, other, 0); }

int mkdirat(int folder, const char *name, mode_t permissions) {
    char buffer[PATH_MAX];
    const char *path = armed ? absolute(folder, name, buffer) : name;
    struct stat status;
    int ours = is_under(path) && lstat(path, &status) != 0;
    if (ours && decide(1, 0) == FAIL) return -1;
    int result = (int)syscall(SYS_mkdirat, folder, name, permissions);
    if (result == 0 && ours && lstat(path, &status) == 0) note("folder", (long)status.st_ino, 0, path, "", 0, 0);
    return result;
}

int mkdir(const char *path, mode_t permissions) { return mkdirat(AT_FDCWD, path, permissions); }
