/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients that speak SMP to a master over UDP, a datagram each way.
 *
 *   socket --> thread --> one datagram, its sender's number --> main loop
 *   socket <------------- answer to the sender of that number <----'
 *
 * The thread waits for the socket and then for the main loop to have done with the datagram; what
 * comes meanwhile waits in the network stack.
 */
#include "helio_shell.h"

#include <errno.h>
#include <string.h>

#include <zephyr/kernel.h>
#include <zephyr/net/dhcpv4.h>
#include <zephyr/net/net_if.h>
#include <zephyr/net/socket.h>
#include <zephyr/sys/atomic.h>

#ifdef CONFIG_ARCH_POSIX
#include "cmdline.h"
#include "posix_native_task.h"

static uint32_t port_option;

static void add_port_option(void)
{
	static struct args_struct_t options[] = {
		{
			.option = "udp_port",
			.name = "number",
			.type = 'u',
			.dest = (void *)&port_option,
			.descript = "UDP port on which clients speak to this master",
		},
		ARG_TABLE_ENDMARKER,
	};

	native_add_command_line_opts(options);
}

NATIVE_TASK(add_port_option, PRE_BOOT_1, 4);
#endif

/* Clients whose answers may still be on their way; of more the one unheard longest is forgotten. */
#define CLIENTS 4

static struct {
	struct sockaddr_in address;
	uint32_t heard;
} clients[CLIENTS];
static struct k_spinlock lock;

static int sock = -1;
static uint8_t datagram[2048];
static size_t length;
static uint32_t sender;
static atomic_t full;
static K_SEM_DEFINE(emptied, 0, 1);

static uint32_t number_of(const struct sockaddr_in *address)
{
	static uint32_t count;
	k_spinlock_key_t key = k_spin_lock(&lock);
	uint32_t number = 0;

	for (uint32_t i = 0; i < CLIENTS; i++) {
		if (clients[i].address.sin_port == address->sin_port &&
		    clients[i].address.sin_addr.s_addr == address->sin_addr.s_addr) {
			number = i;
			break;
		}
		if (clients[i].heard < clients[number].heard) {
			number = i;
		}
	}
	clients[number].address = *address;
	clients[number].heard = ++count;
	k_spin_unlock(&lock, key);
	return number;
}

static void listen(void *a, void *b, void *c)
{
	ARG_UNUSED(a);
	ARG_UNUSED(b);
	ARG_UNUSED(c);
	for (;;) {
		struct sockaddr_in from;
		socklen_t size = sizeof(from);
		struct zsock_pollfd readable = {.fd = sock, .events = ZSOCK_POLLIN};
		ssize_t count = -1;

		/* Who waits in recvfrom holds a lock that sendto wants. */
		if (zsock_poll(&readable, 1, -1) > 0) {
			count = zsock_recvfrom(sock, datagram, sizeof(datagram),
					       ZSOCK_MSG_DONTWAIT, (struct sockaddr *)&from, &size);
		}
		if (count <= 0) {
			/* The network is down, or somebody sent nothing. */
			k_sleep(K_MSEC(10));
			continue;
		}
		sender = number_of(&from);
		length = count;
		atomic_set(&full, 1);
		helio_wake();
		k_sem_take(&emptied, K_FOREVER);
	}
}

static K_THREAD_STACK_DEFINE(stack, CONFIG_HELIO_NORTHBOUND_UDP_STACK_SIZE);
static struct k_thread thread;

int helio_udp_start(void)
{
	uint16_t port = CONFIG_HELIO_NORTHBOUND_UDP_PORT;

#ifdef CONFIG_ARCH_POSIX
	/* The parser of the command line fills what was not given with ones. */
	if (port_option != UINT32_MAX) {
		port = port_option;
	}
#endif
#ifdef CONFIG_NET_DHCPV4
	/* Whenever the answer comes: nobody waits for it. */
	net_dhcpv4_start(net_if_get_default());
#endif
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};

	sock = zsock_socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
	if (sock < 0 || zsock_bind(sock, (struct sockaddr *)&any, sizeof(any)) != 0) {
		return -errno;
	}
	k_thread_create(&thread, stack, K_THREAD_STACK_SIZEOF(stack), listen, NULL, NULL, NULL,
			K_PRIO_PREEMPT(1), 0, K_NO_WAIT);
	k_thread_name_set(&thread, "udp");
	return 0;
}

/* Octets of a datagram and the number of its sender, 0 when none has come. Lent until helio_udp_done. */
int helio_udp_receive(const uint8_t **from, uint32_t *client)
{
	if (atomic_get(&full) == 0) {
		return 0;
	}
	*from = datagram;
	*client = sender;
	return length;
}

void helio_udp_done(void)
{
	atomic_set(&full, 0);
	k_sem_give(&emptied);
}

int helio_udp_send(uint32_t client, const uint8_t *bytes, size_t count)
{
	if (client >= CLIENTS) {
		return -EINVAL;
	}

	k_spinlock_key_t key = k_spin_lock(&lock);
	struct sockaddr_in to = clients[client].address;

	k_spin_unlock(&lock, key);

	/* Without room the answer is lost, and the client asks again. */
	return zsock_sendto(sock, bytes, count, ZSOCK_MSG_DONTWAIT, (struct sockaddr *)&to,
			    sizeof(to)) < 0
		       ? -errno
		       : 0;
}
