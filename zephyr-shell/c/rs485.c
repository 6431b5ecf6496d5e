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
 */
#include "helio_shell.h"

#include <string.h>

#include <zephyr/drivers/gpio.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>

#define BUS DT_PHANDLE(HELIO_NODE, bus)

BUILD_ASSERT(DT_NODE_HAS_PROP(BUS, current_speed),
	     "CONFIG_HELIO_BUS_RS485=y, but `bus` of the heliograph,node is no UART. Point it to "
	     "the UART of the RS485 transceiver, or choose CONFIG_HELIO_BUS_CAN.");

#define RING    1024
#define RUNS    16
#define LONGEST 128

static const struct device *const uart = DEVICE_DT_GET(BUS);

#if DT_NODE_HAS_PROP(HELIO_NODE, driver_enable_gpios)
static const struct gpio_dt_spec driver = GPIO_DT_SPEC_GET(HELIO_NODE, driver_enable_gpios);
#define DRIVE(on) ((void)gpio_pin_set_dt(&driver, on))
#else
#define DRIVE(on) ((void)(on))
#endif

struct run {
	uint64_t end_ns;
	uint16_t count;
	/* Heard as a break, or what may be one: the line was silent before. */
	bool is_break;
	bool after_pause;
};

/* Written by the interrupt, read by the main loop; both under the lock. */
static struct k_spinlock lock;
static uint8_t ring[RING];
static uint32_t written, taken;
static struct run runs[RUNS];
static uint32_t runs_written, runs_taken;
static uint64_t heard_ns;
static uint32_t lost;
static uint32_t pause_ns;

static uint8_t tx[LONGEST];
static size_t tx_count, tx_at;
static volatile bool sending;

static void receive(const uint8_t *bytes, int count, bool is_break)
{
	uint64_t now = helio_now_ns();
	struct run *run = runs_written != runs_taken ? &runs[(runs_written - 1) % RUNS] : NULL;

	/* A reader that has taken the newest run has taken all of it. */
	if (run == NULL || is_break || run->is_break || now - run->end_ns > pause_ns) {
		if (runs_written - runs_taken == RUNS) {
			lost += count;
			return;
		}
		run = &runs[runs_written++ % RUNS];
		*run = (struct run){
			.is_break = is_break,
			.after_pause = now - heard_ns > pause_ns,
		};
	}
	heard_ns = now;
	for (int i = 0; i < count; i++) {
		if (written - taken == RING) {
			lost++;
			continue;
		}
		ring[written++ % RING] = bytes[i];
		run->count++;
	}
	run->end_ns = now;
}

static void drain(void)
{
	uint8_t bytes[32];
	int count;

	while ((count = uart_fifo_read(uart, bytes, sizeof(bytes))) > 0) {
		/* Our own words, where the receiver stays on while we send. */
		if (sending) {
			continue;
		}
		k_spinlock_key_t key = k_spin_lock(&lock);

		receive(bytes, count, false);
		k_spin_unlock(&lock, key);
		helio_wake();
		if (count < (int)sizeof(bytes)) {
			break;
		}
	}
}

static void transmit(void)
{
	if (tx_at < tx_count) {
		int sent = uart_fifo_fill(uart, tx + tx_at, tx_count - tx_at);

		tx_at += sent > 0 ? sent : 0;
	} else if (uart_irq_tx_complete(uart)) {
		uart_irq_tx_disable(uart);
		DRIVE(0);
		sending = false;
		helio_wake();
	}
}

static void handle(const struct device *dev, void *unused)
{
	ARG_UNUSED(unused);
	while (uart_irq_update(dev) && uart_irq_is_pending(dev)) {
		int error = uart_err_check(dev);

		if (error > 0 && (error & (UART_BREAK | UART_ERROR_FRAMING)) && !sending) {
			k_spinlock_key_t key = k_spin_lock(&lock);

			receive(NULL, 0, true);
			k_spin_unlock(&lock, key);
			helio_wake();
		}
		if (uart_irq_rx_ready(dev)) {
			drain();
		}
		if (sending && uart_irq_tx_ready(dev)) {
			transmit();
		} else if (!uart_irq_rx_ready(dev)) {
			break;
		}
	}
}

int helio_rs485_start(uint32_t baud)
{
	if (!device_is_ready(uart)) {
		return -ENODEV;
	}
#if DT_NODE_HAS_PROP(HELIO_NODE, driver_enable_gpios)
	int rc = gpio_pin_configure_dt(&driver, GPIO_OUTPUT_INACTIVE);

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
	if (configured == -ENOSYS && DT_PROP(BUS, current_speed) == baud) {
		configured = 0;
	}

	if (configured != 0 && !IS_ENABLED(CONFIG_ARCH_POSIX)) {
		return configured;
	}
#endif
	/* Two characters, or half a guard where that is longer. */
	pause_ns = MAX(20ULL * NSEC_PER_SEC / baud, CONFIG_HELIO_BUS_GUARD_US * 500ULL);

	int set = uart_irq_callback_user_data_set(uart, handle, NULL);

	if (set != 0) {
		return set;
	}
	uart_irq_rx_enable(uart);
	return 0;
}

/* The next run, or its first `size` characters, and the end of the last of them. */
int helio_rs485_read(uint8_t *to, size_t size, uint64_t *end_ns, uint32_t *is_break)
{
	k_spinlock_key_t key = k_spin_lock(&lock);
	int count = -EAGAIN;

	if (runs_taken != runs_written) {
		struct run *run = &runs[runs_taken % RUNS];

		count = MIN(run->count, size);
		bool zeros = run->after_pause && count > 1;

		for (int i = 0; i < count; i++) {
			to[i] = ring[taken++ % RING];
			zeros = zeros && to[i] == 0;
		}
		*is_break = run->is_break || zeros;
		*end_ns = run->end_ns;
		run->count -= count;
		if (run->count == 0) {
			runs_taken++;
		}
	}
	k_spin_unlock(&lock, key);
	return count;
}

int helio_rs485_send(const uint8_t *bytes, size_t count)
{
	if (sending) {
		return -EBUSY;
	}
	if (count == 0 || count > sizeof(tx)) {
		return -EINVAL;
	}
	memcpy(tx, bytes, count);
	tx_count = count;
	tx_at = 0;
	DRIVE(1);
	if (IS_ENABLED(CONFIG_ARCH_POSIX)) {
		/* The host takes all of it at once, without waiting for an emulated interrupt. */
		int sent = uart_fifo_fill(uart, tx, count);

		tx_at += MAX(sent, 0);
		if (tx_at == tx_count) {
			DRIVE(0);
			return 0;
		}
	}
	sending = true;
	uart_irq_tx_enable(uart);
	return 0;
}

int helio_rs485_send_break(uint32_t microseconds)
{
	uint8_t zeros[LONGEST] = {0};
	uint64_t bits = (uint64_t)microseconds * CONFIG_HELIO_BUS_BITRATE / USEC_PER_SEC;

	return helio_rs485_send(zeros, CLAMP(bits / 10, 2, sizeof(zeros)));
}

/* Characters for which there was no room, since the start. */
uint32_t helio_rs485_lost(void)
{
	return lost;
}
