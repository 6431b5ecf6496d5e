/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CAN and CAN FD on Zephyr's controllers.
 *
 *   rx callback --> ring of frames, with the time of reception --> helio_can_receive
 *   helio_can_send(mailbox) --> controller, which sends the lowest identifier first
 *   tx callback --> bit of the mailbox in `sent` or `failed`
 *
 * Mailboxes as the bus core thinks of them; each holds one frame at a time, so that the controller,
 * which arbitrates between them by identifier, never delays a trip by a long queue. The fourth is for
 * trips alone; a controller of three transmit buffers has none.
 *
 * A controller that has gone off the bus (more than 255 errors while sending) is brought back
 * here after a pause that doubles with each time in a row, so that a node with a broken
 * transceiver does not disturb the others for ever. A frame that went out ends the row; being
 * error-active does not, which every controller is for a moment after it was brought back.
 */
#include "helio_shell.h"

#include <string.h>

#include <zephyr/drivers/can.h>
#include <zephyr/kernel.h>

#define BUS DT_PHANDLE(HELIO_NODE, bus)

BUILD_ASSERT(!DT_NODE_HAS_PROP(BUS, current_speed),
	     "CONFIG_HELIO_BUS_CAN or _CAN_FD is set, but `bus` of the heliograph,node is a UART. "
	     "Point it to a CAN controller, or choose CONFIG_HELIO_BUS_RS485.");

#if DT_NODE_HAS_PROP(BUS, bosch_mram_cfg)
#define MAILBOXES MIN(4, DT_PROP_BY_IDX(BUS, bosch_mram_cfg, 7))
#elif DT_NODE_HAS_COMPAT(BUS, st_stm32_bxcan)
#define MAILBOXES 3
#else
#define MAILBOXES 4
#endif
BUILD_ASSERT(MAILBOXES >= 3, "the CAN controller needs three transmit buffers: raise the last number of bosch,mram-cfg");

#define FD_DATA_BITRATE 5000000
#define FIRST_PAUSE_NS  (10ULL * NSEC_PER_MSEC)
#define LAST_PAUSE_NS   (1000ULL * NSEC_PER_MSEC)

static const struct device *const can = DEVICE_DT_GET(BUS);

struct received {
	uint64_t at_ns;
	struct can_frame frame;
};

static struct k_spinlock lock;
static struct received ring[HELIO_CAN_RING];
static uint32_t written, taken, lost;
static uint32_t waiting, sent, failed;
static uint64_t off_since_ns, pause_ns = FIRST_PAUSE_NS;
static uint32_t recoveries;

static void on_receive(const struct device *dev, struct can_frame *frame, void *unused)
{
	ARG_UNUSED(dev);
	ARG_UNUSED(unused);
	uint64_t now = helio_now_ns();
	k_spinlock_key_t key = k_spin_lock(&lock);

	if (written - taken == HELIO_CAN_RING) {
		lost++;
	} else {
		ring[written++ % HELIO_CAN_RING] = (struct received){.at_ns = now, .frame = *frame};
	}
	k_spin_unlock(&lock, key);
	helio_wake();
}

static void on_sent(const struct device *dev, int error, void *user_data)
{
	ARG_UNUSED(dev);
	uint32_t bit = BIT((uintptr_t)user_data);
	k_spinlock_key_t key = k_spin_lock(&lock);

	waiting &= ~bit;
	if (error == 0) {
		sent |= bit;
		pause_ns = FIRST_PAUSE_NS;
	} else {
		failed |= bit;
	}
	k_spin_unlock(&lock, key);
	helio_wake();
}

static void on_state(const struct device *dev, enum can_state state, struct can_bus_err_cnt count,
		     void *unused)
{
	ARG_UNUSED(dev);
	ARG_UNUSED(count);
	ARG_UNUSED(unused);
	if (state == CAN_STATE_BUS_OFF) {
		off_since_ns = helio_now_ns();
	}
	helio_wake();
}

/* Listens to identifiers that match; both kinds of identifiers have one filter. */
int helio_can_start(uint32_t bitrate, uint32_t fd, uint32_t standard_id, uint32_t standard_mask)
{
	const struct can_filter standard = {.id = standard_id, .mask = standard_mask};
	const struct can_filter extended = {.mask = 0, .flags = CAN_FILTER_IDE};
	can_mode_t mode = CAN_MODE_NORMAL;
	int rc;

	if (!device_is_ready(can)) {
		return -ENODEV;
	}
#ifdef CONFIG_CAN_FD_MODE
	mode |= fd ? CAN_MODE_FD : 0;
#else
	if (fd) {
		return -ENOTSUP;
	}
#endif
#ifdef CONFIG_CAN_MANUAL_RECOVERY_MODE
	can_mode_t capabilities = 0;

	if (can_get_capabilities(can, &capabilities) == 0) {
		mode |= capabilities & CAN_MODE_MANUAL_RECOVERY;
	}
#endif
	rc = can_set_mode(can, mode);
	rc = rc != 0 ? rc : can_set_bitrate(can, bitrate);
#ifdef CONFIG_CAN_FD_MODE
	if (fd && rc == 0) {
		rc = can_set_bitrate_data(can, FD_DATA_BITRATE);
	}
#endif
	if (rc != 0) {
		return rc;
	}
	can_set_state_change_callback(can, on_state, NULL);
	rc = can_add_rx_filter(can, on_receive, NULL, &standard);
	rc = rc < 0 ? rc : can_add_rx_filter(can, on_receive, NULL, &extended);
	return rc < 0 ? rc : can_start(can);
}

/* flags: 1 extended identifier, 2 FD with bit-rate switch. -EBUSY while the mailbox is full. */
int helio_can_send(uint32_t mailbox, uint32_t id, uint32_t flags, const uint8_t *data, size_t count)
{
	struct can_frame frame = {
		.id = id,
		.dlc = can_bytes_to_dlc(count),
		.flags = (flags & 1 ? CAN_FRAME_IDE : 0) |
			 (flags & 2 ? CAN_FRAME_FDF | CAN_FRAME_BRS : 0),
	};

	if (mailbox >= MAILBOXES || count > CAN_MAX_DLEN) {
		return -EINVAL;
	}
	memcpy(frame.data, data, count);

	k_spinlock_key_t key = k_spin_lock(&lock);
	bool full = (waiting & BIT(mailbox)) != 0;

	waiting |= BIT(mailbox);
	k_spin_unlock(&lock, key);
	if (full) {
		return -EBUSY;
	}

	int rc = can_send(can, &frame, K_NO_WAIT, on_sent, (void *)(uintptr_t)mailbox);

	if (rc != 0) {
		key = k_spin_lock(&lock);
		waiting &= ~BIT(mailbox);
		k_spin_unlock(&lock, key);
	}
	return rc;
}

/* Bits of mailboxes: 0 to 7 whose frame was sent since the last call, 8 to 15 whose was given
 * up, 16 to 23 which are full.
 */
uint32_t helio_can_mailboxes(void)
{
	k_spinlock_key_t key = k_spin_lock(&lock);
	uint32_t none = BIT_MASK(4) & ~BIT_MASK(MAILBOXES);
	uint32_t bits = sent | failed << 8 | (waiting | none) << 16;

	sent = 0;
	failed = 0;
	k_spin_unlock(&lock, key);
	return bits;
}

/* Length of the data, or -EAGAIN. */
int helio_can_receive(uint32_t *id, uint32_t *flags, uint8_t *data, uint64_t *at_ns)
{
	k_spinlock_key_t key = k_spin_lock(&lock);
	int count = -EAGAIN;

	if (taken != written) {
		const struct received *r = &ring[taken++ % HELIO_CAN_RING];

		count = MIN(can_dlc_to_bytes(r->frame.dlc), CAN_MAX_DLEN);
		*id = r->frame.id;
		*flags = (r->frame.flags & CAN_FRAME_IDE ? 1 : 0) |
			 (r->frame.flags & CAN_FRAME_FDF ? 2 : 0);
		*at_ns = r->at_ns;
		memcpy(data, r->frame.data, count);
	}
	k_spin_unlock(&lock, key);
	return count;
}

/* Call now and then: brings a controller back that has gone off the bus. */
int helio_can_tend(void)
{
#ifdef CONFIG_CAN_MANUAL_RECOVERY_MODE
	enum can_state state;

	if (can_get_state(can, &state, NULL) != 0 || state != CAN_STATE_BUS_OFF ||
	    helio_now_ns() - off_since_ns < pause_ns) {
		return 0;
	}
	pause_ns = MIN(pause_ns * 2, LAST_PAUSE_NS);
	off_since_ns = helio_now_ns();
	recoveries++;

	int rc = can_recover(can, K_NO_WAIT);

	/* Under way is as good as done. */
	return rc == -EAGAIN ? 0 : rc;
#else
	return 0;
#endif
}

/* enum can_state in bits 0 to 7, then transmit and receive error counters. */
uint32_t helio_can_state(void)
{
	enum can_state state = CAN_STATE_STOPPED;
	struct can_bus_err_cnt count = {0};

	(void)can_get_state(can, &state, &count);
	return (uint32_t)state | count.tx_err_cnt << 8 | (uint32_t)count.rx_err_cnt << 16;
}

uint32_t helio_can_lost(void)
{
	return lost;
}

uint32_t helio_can_recoveries(void)
{
	return recoveries;
}
