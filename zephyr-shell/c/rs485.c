/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RS485 on a UART with the interrupt API.
 *
 *   ISR: FIFO --> current run of characters --pause--> ring of runs --> helio_rs485_read
 *   helio_rs485_send --> buffer --> FIFO, driver enabled until the last stop bit has gone
 *
 * Characters that came without a pause between them stay together, with the time of the last
 * one, so that a reader who is late still knows when each run ended.
 *
 * A break is sent as characters of zeros, back to back: nine bits low, one high, again. Every
 * UART can send that, and no frame of the bus begins with zeros. What is heard as a break, as a
 * framing error or as nothing but zeros counts as one.
 *
 * Buses share nothing but the code: each has its UART, its state and its lock.
 */
#include "helio_shell.h"

#include <string.h>

#include <zephyr/drivers/gpio.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>

#define CHECK(node, prop, index)                                                                   \
	BUILD_ASSERT(DT_NODE_HAS_PROP(DT_PHANDLE_BY_IDX(node, prop, index), current_speed),        \
		     "CONFIG_HELIO_BUS_RS485=y, but `bus` of the heliograph,node is no UART. "     \
		     "Point it to the UART of the RS485 transceiver, or choose "                   \
		     "CONFIG_HELIO_BUS_CAN.");

DT_FOREACH_PROP_ELEM(HELIO_NODE, bus, CHECK)

#define RING    1024
#define RUNS    16
#define LONGEST 128

struct line {
	const struct device *uart;
	uint32_t baud;
};

#define LINE(node, prop, index)                                                                    \
	{                                                                                          \
		.uart = DEVICE_DT_GET(DT_PHANDLE_BY_IDX(node, prop, index)),                       \
		.baud = DT_PROP_OR(DT_PHANDLE_BY_IDX(node, prop, index), current_speed, 0),        \
	}

static const struct line lines[] = {DT_FOREACH_PROP_ELEM_SEP(HELIO_NODE, bus, LINE, (,))};

#if DT_NODE_HAS_PROP(HELIO_NODE, driver_enable_gpios)
BUILD_ASSERT(DT_PROP_LEN(HELIO_NODE, driver_enable_gpios) == HELIO_BUSES,
	     "the heliograph,node has another number of `driver-enable-gpios` than of `bus`: name one "
	     "for each bus, in order");

#define DRIVER(node, prop, index) GPIO_DT_SPEC_GET_BY_IDX(node, prop, index)
static const struct gpio_dt_spec drivers[] = {
	DT_FOREACH_PROP_ELEM_SEP(HELIO_NODE, driver_enable_gpios, DRIVER, (,))};
#define DRIVE(bus, on) ((void)gpio_pin_set_dt(&drivers[bus], on))
#else
#define DRIVE(bus, on) ((void)(on))
#endif

struct run {
	uint64_t end_ns;
	uint16_t count;
	/* Heard as a break, or what may be one: the line was silent before. */
	bool is_break;
	bool after_pause;
};

/* What is heard is written by the interrupt and read by the main loop, both under the lock. */
struct bus {
	struct run runs[RUNS];
	uint64_t heard_ns;
	uint8_t ring[RING];
	uint32_t written, taken;
	uint32_t runs_written, runs_taken;
	uint32_t lost;
	uint32_t pause_ns;
	size_t tx_count, tx_at;
	uint8_t tx[LONGEST];
	volatile bool sending;
	struct k_spinlock lock;
};

static struct bus buses[HELIO_BUSES];

static void receive(struct bus *b, const uint8_t *bytes, int count, bool is_break)
{
	uint64_t now = helio_now_ns();
	struct run *run = b->runs_written != b->runs_taken
				  ? &b->runs[(b->runs_written - 1) % RUNS]
				  : NULL;

	/* A reader that has taken the newest run has taken all of it. */
	if (run == NULL || is_break || run->is_break || now - run->end_ns > b->pause_ns) {
		if (b->runs_written - b->runs_taken == RUNS) {
			b->lost += count;
			return;
		}
		run = &b->runs[b->runs_written++ % RUNS];
		*run = (struct run){
			.is_break = is_break,
			.after_pause = now - b->heard_ns > b->pause_ns,
		};
	}
	b->heard_ns = now;
	for (int i = 0; i < count; i++) {
		if (b->written - b->taken == RING) {
			b->lost++;
			continue;
		}
		b->ring[b->written++ % RING] = bytes[i];
		run->count++;
	}
	run->end_ns = now;
}

static void drain(const struct device *uart, struct bus *b)
{
	uint8_t bytes[32];
	int count;

	while ((count = uart_fifo_read(uart, bytes, sizeof(bytes))) > 0) {
		/* Our own words, where the receiver stays on while we send. */
		if (b->sending) {
			continue;
		}
		k_spinlock_key_t key = k_spin_lock(&b->lock);

		receive(b, bytes, count, false);
		k_spin_unlock(&b->lock, key);
		helio_wake();
		if (count < (int)sizeof(bytes)) {
			break;
		}
	}
}

static void transmit(const struct device *uart, struct bus *b)
{
	if (b->tx_at < b->tx_count) {
		int sent = uart_fifo_fill(uart, b->tx + b->tx_at, b->tx_count - b->tx_at);

		b->tx_at += sent > 0 ? sent : 0;
	} else if (uart_irq_tx_complete(uart)) {
		uart_irq_tx_disable(uart);
		DRIVE(b - buses, 0);
		b->sending = false;
		helio_wake();
	}
}

static void handle(const struct device *dev, void *user_data)
{
	struct bus *b = user_data;

	while (uart_irq_update(dev) && uart_irq_is_pending(dev)) {
		int error = uart_err_check(dev);

		if (error > 0 && (error & (UART_BREAK | UART_ERROR_FRAMING)) && !b->sending) {
			k_spinlock_key_t key = k_spin_lock(&b->lock);

			receive(b, NULL, 0, true);
			k_spin_unlock(&b->lock, key);
			helio_wake();
		}
		if (uart_irq_rx_ready(dev)) {
			drain(dev, b);
		}
		if (b->sending && uart_irq_tx_ready(dev)) {
			transmit(dev, b);
		} else if (!uart_irq_rx_ready(dev)) {
			break;
		}
	}
}

int helio_rs485_start(uint32_t bus, uint32_t baud)
{
	const struct device *uart = lines[bus].uart;
	struct bus *b = &buses[bus];

	if (!device_is_ready(uart)) {
		return -ENODEV;
	}
#if DT_NODE_HAS_PROP(HELIO_NODE, driver_enable_gpios)
	int rc = gpio_pin_configure_dt(&drivers[bus], GPIO_OUTPUT_INACTIVE);

	if (rc != 0) {
		return rc;
	}
#endif
#ifdef CONFIG_UART_USE_RUNTIME_CONFIGURE
	const struct uart_config config = {
		.baudrate = baud,
		.parity = UART_CFG_PARITY_NONE,
		.stop_bits = UART_CFG_STOP_BITS_1,
		.data_bits = UART_CFG_DATA_BITS_8,
		.flow_ctrl = UART_CFG_FLOW_CTRL_NONE,
	};
	/* Emulated lines have no rate. */
	int configured = uart_configure(uart, &config);

	/* A driver that sets its rate once, from the devicetree, has the right one or none. */
	if (configured == -ENOSYS && lines[bus].baud == baud) {
		configured = 0;
	}

	if (configured != 0 && !IS_ENABLED(CONFIG_ARCH_POSIX)) {
		return configured;
	}
#endif
	/* Two characters, or half a guard where that is longer. */
	b->pause_ns = MAX(20ULL * NSEC_PER_SEC / baud, CONFIG_HELIO_BUS_GUARD_US * 500ULL);

	int set = uart_irq_callback_user_data_set(uart, handle, b);

	if (set != 0) {
		return set;
	}
	uart_irq_rx_enable(uart);
	return 0;
}

/* The next run, or its first `size` characters, and the end of the last of them. */
int helio_rs485_read(uint32_t bus, uint8_t *to, size_t size, uint64_t *end_ns,
		     uint32_t *is_break)
{
	struct bus *b = &buses[bus];
	k_spinlock_key_t key = k_spin_lock(&b->lock);
	int count = -EAGAIN;

	if (b->runs_taken != b->runs_written) {
		struct run *run = &b->runs[b->runs_taken % RUNS];

		count = MIN(run->count, size);
		bool zeros = run->after_pause && count > 1;

		for (int i = 0; i < count; i++) {
			to[i] = b->ring[b->taken++ % RING];
			zeros = zeros && to[i] == 0;
		}
		*is_break = run->is_break || zeros;
		*end_ns = run->end_ns;
		run->count -= count;
		if (run->count == 0) {
			b->runs_taken++;
		}
	}
	k_spin_unlock(&b->lock, key);
	return count;
}

int helio_rs485_send(uint32_t bus, const uint8_t *bytes, size_t count)
{
	const struct device *uart = lines[bus].uart;
	struct bus *b = &buses[bus];

	if (b->sending) {
		return -EBUSY;
	}
	if (count == 0 || count > sizeof(b->tx)) {
		return -EINVAL;
	}
	memcpy(b->tx, bytes, count);
	b->tx_count = count;
	b->tx_at = 0;
	DRIVE(bus, 1);
	if (IS_ENABLED(CONFIG_ARCH_POSIX)) {
		/* The host takes all of it at once, without waiting for an emulated interrupt. */
		int sent = uart_fifo_fill(uart, b->tx, count);

		b->tx_at += MAX(sent, 0);
		if (b->tx_at == b->tx_count) {
			DRIVE(bus, 0);
			return 0;
		}
	}
	b->sending = true;
	uart_irq_tx_enable(uart);
	return 0;
}

int helio_rs485_send_break(uint32_t bus, uint32_t microseconds)
{
	uint8_t zeros[LONGEST] = {0};
	uint64_t bits = (uint64_t)microseconds * CONFIG_HELIO_BUS_BITRATE / USEC_PER_SEC;

	return helio_rs485_send(bus, zeros, CLAMP(bits / 10, 2, sizeof(zeros)));
}

/* Characters for which there was no room, since the start. */
uint32_t helio_rs485_lost(uint32_t bus)
{
	return buses[bus].lost;
}
