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
 *
 * Buses share nothing but the code: each has its controller, its state and its lock.
 */
#include "helio_shell.h"

#include <string.h>

#include <zephyr/drivers/can.h>
#include <zephyr/kernel.h>

/* Transmit buffers that are used. */
#define MAILBOXES(controller)                                                                      \
	COND_CODE_1(DT_NODE_HAS_PROP(controller, bosch_mram_cfg),                                  \
		    (MIN(4, DT_PROP_BY_IDX(controller, bosch_mram_cfg, 7))),                       \
		    (DT_NODE_HAS_COMPAT(controller, st_stm32_bxcan) ? 3 : 4))

#define CHECK(node, prop, index)                                                                   \
	BUILD_ASSERT(!DT_NODE_HAS_PROP(DT_PHANDLE_BY_IDX(node, prop, index), current_speed),       \
		     "CONFIG_HELIO_BUS_CAN or _CAN_FD is set, but `bus` of the heliograph,node "   \
		     "is a UART. Point it to a CAN controller, or choose "                         \
		     "CONFIG_HELIO_BUS_RS485.");                                                   \
	BUILD_ASSERT(MAILBOXES(DT_PHANDLE_BY_IDX(node, prop, index)) >= 3,                         \
		     "the CAN controller needs three transmit buffers: raise the last number of "  \
		     "bosch,mram-cfg");

DT_FOREACH_PROP_ELEM(HELIO_NODE, bus, CHECK)

#define FD_DATA_BITRATE 5000000
#define FIRST_PAUSE_NS  (10ULL * NSEC_PER_MSEC)
#define LAST_PAUSE_NS   (1000ULL * NSEC_PER_MSEC)

struct controller {
	const struct device *dev;
	uint32_t mailboxes;
};

#define CONTROLLER(node, prop, index)                                                              \
	{                                                                                          \
		.dev = DEVICE_DT_GET(DT_PHANDLE_BY_IDX(node, prop, index)),                        \
		.mailboxes = MAILBOXES(DT_PHANDLE_BY_IDX(node, prop, index)),                      \
	}

static const struct controller controllers[] = {
	DT_FOREACH_PROP_ELEM_SEP(HELIO_NODE, bus, CONTROLLER, (,))};

struct received {
	uint64_t at_ns;
	struct can_frame frame;
};

/* Written by callbacks and the main loop, under the lock. */
struct bus {
	struct received ring[HELIO_CAN_RING];
	uint64_t off_since_ns, pause_ns;
	uint32_t written, taken, lost;
	uint32_t waiting, sent, failed;
	uint32_t recoveries;
	struct k_spinlock lock;
};

static struct bus buses[HELIO_BUSES];

static void on_receive(const struct device *dev, struct can_frame *frame, void *user_data)
{
	ARG_UNUSED(dev);
	struct bus *b = user_data;
	uint64_t now = helio_now_ns();
	k_spinlock_key_t key = k_spin_lock(&b->lock);

	if (b->written - b->taken == HELIO_CAN_RING) {
		b->lost++;
	} else {
		b->ring[b->written++ % HELIO_CAN_RING] =
			(struct received){.at_ns = now, .frame = *frame};
	}
	k_spin_unlock(&b->lock, key);
	helio_wake();
}

/* Bus and mailbox as one number, for on_sent. */
#define SENT_FROM(bus, mailbox) ((void *)(uintptr_t)((bus) * 4 + (mailbox)))

static void on_sent(const struct device *dev, int error, void *user_data)
{
	ARG_UNUSED(dev);
	struct bus *b = &buses[(uintptr_t)user_data / 4];
	uint32_t bit = BIT((uintptr_t)user_data % 4);
	k_spinlock_key_t key = k_spin_lock(&b->lock);

	b->waiting &= ~bit;
	if (error == 0) {
		b->sent |= bit;
		b->pause_ns = FIRST_PAUSE_NS;
	} else {
		b->failed |= bit;
	}
	k_spin_unlock(&b->lock, key);
	helio_wake();
}

static void on_state(const struct device *dev, enum can_state state, struct can_bus_err_cnt count,
		     void *user_data)
{
	ARG_UNUSED(dev);
	ARG_UNUSED(count);
	struct bus *b = user_data;

	if (state == CAN_STATE_BUS_OFF) {
		b->off_since_ns = helio_now_ns();
	}
	helio_wake();
}

/* Listens to identifiers that match; both kinds of identifiers have one filter. */
int helio_can_start(uint32_t bus, uint32_t bitrate, uint32_t fd, uint32_t standard_id,
		    uint32_t standard_mask)
{
	const struct device *can = controllers[bus].dev;
	struct bus *b = &buses[bus];
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
	b->pause_ns = FIRST_PAUSE_NS;
	can_set_state_change_callback(can, on_state, b);
	rc = can_add_rx_filter(can, on_receive, b, &standard);
	rc = rc < 0 ? rc : can_add_rx_filter(can, on_receive, b, &extended);
	return rc < 0 ? rc : can_start(can);
}

/* flags: 1 extended identifier, 2 FD with bit-rate switch. -EBUSY while the mailbox is full. */
int helio_can_send(uint32_t bus, uint32_t mailbox, uint32_t id, uint32_t flags,
		   const uint8_t *data, size_t count)
{
	const struct controller *controller = &controllers[bus];
	struct bus *b = &buses[bus];
	struct can_frame frame = {
		.id = id,
		.dlc = can_bytes_to_dlc(count),
		.flags = (flags & 1 ? CAN_FRAME_IDE : 0) |
			 (flags & 2 ? CAN_FRAME_FDF | CAN_FRAME_BRS : 0),
	};

	if (mailbox >= controller->mailboxes || count > CAN_MAX_DLEN) {
		return -EINVAL;
	}
	memcpy(frame.data, data, count);

	k_spinlock_key_t key = k_spin_lock(&b->lock);
	bool full = (b->waiting & BIT(mailbox)) != 0;

	b->waiting |= BIT(mailbox);
	k_spin_unlock(&b->lock, key);
	if (full) {
		return -EBUSY;
	}

	int rc = can_send(controller->dev, &frame, K_NO_WAIT, on_sent, SENT_FROM(bus, mailbox));

	if (rc != 0) {
		key = k_spin_lock(&b->lock);
		b->waiting &= ~BIT(mailbox);
		k_spin_unlock(&b->lock, key);
	}
	return rc;
}

/* Bits of mailboxes: 0 to 7 whose frame was sent since the last call, 8 to 15 whose was given
 * up, 16 to 23 which are full.
 */
uint32_t helio_can_mailboxes(uint32_t bus)
{
	struct bus *b = &buses[bus];
	k_spinlock_key_t key = k_spin_lock(&b->lock);
	uint32_t none = BIT_MASK(4) & ~BIT_MASK(controllers[bus].mailboxes);
	uint32_t bits = b->sent | b->failed << 8 | (b->waiting | none) << 16;

	b->sent = 0;
	b->failed = 0;
	k_spin_unlock(&b->lock, key);
	return bits;
}

/* Length of the data, or -EAGAIN. */
int helio_can_receive(uint32_t bus, uint32_t *id, uint32_t *flags, uint8_t *data, uint64_t *at_ns)
{
	struct bus *b = &buses[bus];
	k_spinlock_key_t key = k_spin_lock(&b->lock);
	int count = -EAGAIN;

	if (b->taken != b->written) {
		const struct received *r = &b->ring[b->taken++ % HELIO_CAN_RING];

		count = MIN(can_dlc_to_bytes(r->frame.dlc), CAN_MAX_DLEN);
		*id = r->frame.id;
		*flags = (r->frame.flags & CAN_FRAME_IDE ? 1 : 0) |
			 (r->frame.flags & CAN_FRAME_FDF ? 2 : 0);
		*at_ns = r->at_ns;
		memcpy(data, r->frame.data, count);
	}
	k_spin_unlock(&b->lock, key);
	return count;
}

/* Call now and then: brings a controller back that has gone off the bus. */
int helio_can_tend(uint32_t bus)
{
#ifdef CONFIG_CAN_MANUAL_RECOVERY_MODE
	const struct device *can = controllers[bus].dev;
	struct bus *b = &buses[bus];
	enum can_state state;

	if (can_get_state(can, &state, NULL) != 0 || state != CAN_STATE_BUS_OFF ||
	    helio_now_ns() - b->off_since_ns < b->pause_ns) {
		return 0;
	}
	b->pause_ns = MIN(b->pause_ns * 2, LAST_PAUSE_NS);
	b->off_since_ns = helio_now_ns();
	b->recoveries++;

	int rc = can_recover(can, K_NO_WAIT);

	/* Under way is as good as done. */
	return rc == -EAGAIN ? 0 : rc;
#else
	return 0;
#endif
}

/* enum can_state in bits 0 to 7, then transmit and receive error counters. */
uint32_t helio_can_state(uint32_t bus)
{
	enum can_state state = CAN_STATE_STOPPED;
	struct can_bus_err_cnt count = {0};

	(void)can_get_state(controllers[bus].dev, &state, &count);
	return (uint32_t)state | count.tx_err_cnt << 8 | (uint32_t)count.rx_err_cnt << 16;
}

uint32_t helio_can_lost(uint32_t bus)
{
	return buses[bus].lost;
}

uint32_t helio_can_recoveries(uint32_t bus)
{
	return buses[bus].recoveries;
}
