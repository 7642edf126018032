/* Preloaded into pjdfstest: its character devices become 1:3 instead of 0:0, which is a whiteout
 * to a union. See pjdfstest.exclude. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

int mknod(const char *path, mode_t mode, dev_t dev)
{
	if (S_ISCHR(mode) && dev == 0)
		dev = makedev(1, 3);
	return mknodat(AT_FDCWD, path, mode, dev);
}
