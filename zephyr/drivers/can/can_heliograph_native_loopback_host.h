/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * The host's half of the loopback CAN controller: a stream socket to the hub. Included by both
 * halves, so plain types only.
 */

#ifndef CAN_HELIOGRAPH_NATIVE_LOOPBACK_HOST_H_
#define CAN_HELIOGRAPH_NATIVE_LOOPBACK_HOST_H_

/* Connects to "127.0.0.1:PORT" or "/path"; the descriptor, or -1 when nobody listens there. */
int heliograph_can_host_open(const char *address);
void heliograph_can_host_close(int fd);
/* Octets read without waiting; 0 when there are none now, -1 when the hub has gone. */
int heliograph_can_host_read(int fd, void *buf, unsigned int len);
/* 0, or -1 when the hub has gone or has stopped reading. */
int heliograph_can_host_write(int fd, const void *buf, unsigned int len);

#endif
