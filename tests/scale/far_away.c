/* A file server that is 1 ms away: each metadata call below FAR_AWAY sleeps so long, and is a line of FAR_AWAY_LOG:
 * seconds (CLOCK_MONOTONIC), pid, call, path. For LD_PRELOAD. Reads and writes of open files are not delayed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int log_fd = -1;
static const char *root;

__attribute__((constructor)) static void begin(void) {
  root = getenv("FAR_AWAY");
  const char *path = getenv("FAR_AWAY_LOG");
  int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
  if (root && path) log_fd = real(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void call(const char *name, int dir, const char *path) {
  char whole[2 * PATH_MAX], link[64];
  if (log_fd < 0) return;
  whole[0] = 0;
  if (path == NULL || path[0] != '/') {
    if (dir == AT_FDCWD) {
      if (!getcwd(whole, PATH_MAX)) return;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
      ssize_t size = readlink(link, whole, PATH_MAX - 1);
      if (size < 0) return;
      whole[size] = 0;
    }
    if (path && path[0]) strcat(whole, "/");
  }
  if (path) strncat(whole, path, PATH_MAX);
  if (strncmp(whole, root, strlen(root))) return;
  struct timespec now, nap = {0, 1000000};
  clock_gettime(CLOCK_MONOTONIC, &now);
  dprintf(log_fd, "%ld.%06ld %d %s %s\n", (long)now.tv_sec, now.tv_nsec / 1000, (int)getpid(), name, whole);
  nanosleep(&nap, NULL);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, #name)
#define MODE \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); MODE call("open", AT_FDCWD, path); return real(path, flags, mode); }
#define OPENAT(name) \
  int name(int dir, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, ...); MODE call("open", dir, path); return real(dir, path, flags, mode); }
#define BY_PATH(name, label, type) \
  int name(const char *path, type a) { \
    REAL(int, name, const char *, type); call(label, AT_FDCWD, path); return real(path, a); }
#define BY_FD(name, label, type) \
  int name(int fd, type a) { REAL(int, name, int, type); call(label, fd, NULL); return real(fd, a); }
#define AT(name, label, type) \
  int name(int dir, const char *path, type a, int flags) { \
    REAL(int, name, int, const char *, type, int); call(label, dir, path); return real(dir, path, a, flags); }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
BY_PATH(stat, "stat", struct stat *)
BY_PATH(stat64, "stat", struct stat64 *)
BY_PATH(lstat, "stat", struct stat *)
BY_PATH(lstat64, "stat", struct stat64 *)
BY_PATH(access, "access", int)
BY_PATH(mkdir, "mkdir", mode_t)
BY_PATH(rename, "rename", const char *)
BY_FD(fstat, "fstat", struct stat *)
BY_FD(fstat64, "fstat", struct stat64 *)
BY_FD(futimens, "utime", const struct timespec *)
AT(fstatat, "stat", struct stat *)
AT(fstatat64, "stat", struct stat64 *)
AT(utimensat, "utime", const struct timespec *)
AT(faccessat, "access", int)

int unlink(const char *path) {
  REAL(int, unlink, const char *);
  call("unlink", AT_FDCWD, path);
  return real(path);
}

DIR *opendir(const char *path) {
  REAL(DIR *, opendir, const char *);
  call("open", AT_FDCWD, path);
  return real(path);
}
