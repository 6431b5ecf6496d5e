/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The UART on which clients speak SMP to a master: two rings of bytes, filled and emptied by its
 * interrupt. What the bytes mean is decided in Rust.
 */
#include "helio_shell.h"

#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>
#include <zephyr/sys/ring_buffer.h>

BUILD_ASSERT(DT_NODE_HAS_PROP(HELIO_NODE, northbound),
	     "CONFIG_HELIO_NORTHBOUND=y, but the heliograph,node has no `northbound`. Point it to "
	     "a UART that is not the console.");

static const struct device *const uart = DEVICE_DT_GET(DT_PHANDLE(HELIO_NODE, northbound));

RING_BUF_DECLARE(rx, CONFIG_HELIO_NORTHBOUND_RX_SIZE);
RING_BUF_DECLARE(tx, CONFIG_HELIO_NORTHBOUND_TX_SIZE);
static struct k_spinlock lock;

static void handle(const struct device *dev, void *unused)
{
	ARG_UNUSED(unused);
	while (uart_irq_update(dev) && uart_irq_is_pending(dev)) {
		bool worked = false;

		if (uart_irq_rx_ready(dev)) {
			uint8_t bytes[32];
			int count = uart_fifo_read(dev, bytes, sizeof(bytes));

			if (count > 0) {
				k_spinlock_key_t key = k_spin_lock(&lock);

				/* Without room the client's request is lost, and it asks again. */
				(void)ring_buf_put(&rx, bytes, count);
				k_spin_unlock(&lock, key);
				helio_wake();
				worked = true;
			}
		}
		if (uart_irq_tx_ready(dev)) {
			k_spinlock_key_t key = k_spin_lock(&lock);
			uint8_t *bytes;
			uint32_t count = ring_buf_get_claim(&tx, &bytes, 128);

			if (count > 0) {
				int sent = uart_fifo_fill(dev, bytes, count);

				(void)ring_buf_get_finish(&tx, MAX(sent, 0));
				worked = true;
			} else {
				(void)ring_buf_get_finish(&tx, 0);
				uart_irq_tx_disable(dev);
			}
			k_spin_unlock(&lock, key);
		}
		if (!worked) {
			break;
		}
	}
}

int helio_northbound_start(void)
{
	if (!device_is_ready(uart)) {
		return -ENODEV;
	}

	int rc = uart_irq_callback_user_data_set(uart, handle, NULL);

	if (rc == 0) {
		uart_irq_rx_enable(uart);
	}
	return rc;
}

/* Bytes taken, 0 when there are none. */
int helio_northbound_read(uint8_t *to, size_t size)
{
	k_spinlock_key_t key = k_spin_lock(&lock);
	uint32_t count = ring_buf_get(&rx, to, size);

	k_spin_unlock(&lock, key);
	return count;
}

/* All or nothing: -EBUSY while there is no room. */
int helio_northbound_write(const uint8_t *bytes, size_t count)
{
	k_spinlock_key_t key = k_spin_lock(&lock);
	int rc = -EBUSY;

	if (ring_buf_space_get(&tx) >= count) {
		(void)ring_buf_put(&tx, bytes, count);
		rc = 0;
	}
	k_spin_unlock(&lock, key);
	if (rc == 0) {
		uart_irq_tx_enable(uart);
	}
	return rc;
}
