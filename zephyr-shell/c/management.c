/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zephyr's mcumgr (images, settings, reset) behind datagrams that the main loop has in hand.
 *
 *   helio_management_request --> buffer --> mcumgr's work queue --> output --> helio_management_answer
 *   main loop                               erases and writes flash            main loop
 *
 * A transport of mcumgr like those for UART and UDP, whose line is a function call. mcumgr works
 * in a thread of its own below the main loop's priority, so a slot that is erased holds up nobody
 * but the client. One request is at work at a time; what comes meanwhile is refused.
 */
#include "helio_shell.h"

#include <errno.h>

#ifdef CONFIG_HELIO_MANAGEMENT

#include <string.h>

#include <mgmt/mcumgr/transport/smp_internal.h>
#include <zephyr/init.h>
#include <zephyr/kernel.h>
#include <zephyr/mgmt/mcumgr/smp/smp.h>
#include <zephyr/mgmt/mcumgr/transport/smp.h>
#include <zephyr/net_buf.h>

static struct smp_transport transport;
/* Given by the work queue, taken by the main loop; swapped atomically. */
static atomic_ptr_t answer = ATOMIC_PTR_INIT(NULL);

static void keep(struct net_buf *nb)
{
	struct net_buf *old = atomic_ptr_set(&answer, nb);

	if (old != NULL) {
		smp_packet_free(old);
	}
}

/* From the request to its answer. The thread may have something to tidy up after that. */
static atomic_t at_work;

static int output(struct net_buf *nb)
{
	keep(nb);
	atomic_set(&at_work, 0);
	helio_wake();
	return 0;
}

static uint16_t get_mtu(const struct net_buf *nb)
{
	ARG_UNUSED(nb);
	return CONFIG_MCUMGR_TRANSPORT_NETBUF_SIZE;
}

static int init(void)
{
	transport.functions.output = output;
	transport.functions.get_mtu = get_mtu;
	return smp_transport_init(&transport);
}

SYS_INIT(init, APPLICATION, CONFIG_APPLICATION_INIT_PRIORITY);

/* -EBUSY: the one before is still at work. An answer that nobody fetched is dropped. */
int helio_management_request(const uint8_t *datagram, size_t count)
{
	struct net_buf *nb;

	/* What has no answer leaves the mark, but ends all the same. */
	if (atomic_get(&at_work) != 0 && k_work_busy_get(&transport.work) != 0) {
		return -EBUSY;
	}
	keep(NULL);
	nb = smp_packet_alloc();
	if (nb == NULL) {
		return -EBUSY;
	}
	if (net_buf_tailroom(nb) < count) {
		smp_packet_free(nb);
		return -EMSGSIZE;
	}
	net_buf_add_mem(nb, datagram, count);
	memset(net_buf_user_data(nb), 0, nb->user_data_size);
	atomic_set(&at_work, 1);
	smp_rx_req(&transport, nb);
	return 0;
}

/* Lent to the main loop until helio_management_done. */
static struct net_buf *lent;

/* Octets of an answer, 0 when there is none. */
int helio_management_answer(const uint8_t **from)
{
	lent = atomic_ptr_set(&answer, NULL);
	if (lent == NULL) {
		return 0;
	}
	*from = lent->data;
	return lent->len;
}

void helio_management_done(void)
{
	if (lent != NULL) {
		smp_packet_free(lent);
		lent = NULL;
	}
}

#else

int helio_management_request(const uint8_t *datagram, size_t count)
{
	return -ENODEV;
}

int helio_management_answer(const uint8_t **from)
{
	return 0;
}

void helio_management_done(void)
{
}

#endif
