/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * Built into native_sim's runner with the host's headers; knows nothing of Zephyr.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "can_heliograph_native_loopback_host.h"

static int open_unix(const char *path)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(path) >= sizeof(to.sun_path)) {
		return -1;
	}
	strcpy(to.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int open_tcp(const char *address)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	const char *colon = strrchr(address, ':');
	char host[16] = {0};
	int fd, one = 1;

	if (colon == NULL || (size_t)(colon - address) >= sizeof(host)) {
		return -1;
	}
	memcpy(host, address, colon - address);
	to.sin_port = htons(atoi(colon + 1));
	/* Frames know no passwords: this machine only. */
	if (inet_pton(AF_INET, host, &to.sin_addr) != 1 ||
	    (ntohl(to.sin_addr.s_addr) >> 24) != 127) {
		return -1;
	}
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
		close(fd);
		return -1;
	}
	if (fd >= 0) {
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	return fd;
}

int heliograph_can_host_open(const char *address)
{
	int fd = strchr(address, '/') != NULL ? open_unix(address) : open_tcp(address);

	if (fd >= 0) {
		(void)fcntl(fd, F_SETFL, O_NONBLOCK);
	}
	return fd;
}

void heliograph_can_host_close(int fd)
{
	close(fd);
}

int heliograph_can_host_read(int fd, void *buf, unsigned int len)
{
	ssize_t n = recv(fd, buf, len, 0);

	if (n > 0) {
		return (int)n;
	}
	return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

int heliograph_can_host_write(int fd, const void *buf, unsigned int len)
{
	/* At most three mailboxes are full: the socket has always room, or nobody reads it. */
	return send(fd, buf, len, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -1;
}
