/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include <zephyr/drivers/gpio/gpio_emul.h>
#include <zephyr/drivers/serial/uart_emul.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static const struct device *const line = DEVICE_DT_GET(DT_NODELABEL(line));
static const struct device *const other = DEVICE_DT_GET(DT_NODELABEL(other_line));

static uint8_t got[256];
static uint64_t end_ns;
static uint32_t is_break;

static int read_from(uint32_t bus)
{
	is_break = 0;
	return helio_rs485_read(bus, got, sizeof(got), &end_ns, &is_break);
}

static int read(void)
{
	return read_from(0);
}

static void hear(const void *bytes, size_t count)
{
	zassert_equal(uart_emul_put_rx_data(line, bytes, count), count);
	/* The emulator's interrupt is a thread. */
	k_sleep(K_USEC(200));
}

/* What has left the UART of bus 0, and how much the other's. Lines take it at once, so that it is all said soon. */
static uint8_t said[256];
static size_t said_count, said_elsewhere;

static void take(const struct device *dev, size_t size, void *unused)
{
	ARG_UNUSED(size);
	ARG_UNUSED(unused);
	said_count += uart_emul_get_tx_data(dev, said + said_count, sizeof(said) - said_count);
}

static void take_other(const struct device *dev, size_t size, void *unused)
{
	uint8_t some[256];

	ARG_UNUSED(size);
	ARG_UNUSED(unused);
	said_elsewhere += uart_emul_get_tx_data(dev, some, sizeof(some));
}

static void *setup(void)
{
	uart_emul_callback_tx_data_ready_set(line, take, NULL);
	uart_emul_callback_tx_data_ready_set(other, take_other, NULL);
	zassert_ok(helio_node_init());
	zassert_ok(helio_rs485_start(0, 1000000));
	zassert_ok(helio_rs485_start(1, 1000000));
	return NULL;
}

static void silence(void *unused)
{
	ARG_UNUSED(unused);
	k_sleep(K_MSEC(3));
	while (read() >= 0 || read_from(1) >= 0) {
	}
	said_count = 0;
	said_elsewhere = 0;
}

ZTEST_SUITE(rs485, NULL, setup, silence, NULL, NULL);

ZTEST(rs485, test_nothing_was_heard_on_a_silent_line)
{
	zassert_equal(read(), -EAGAIN);
}

ZTEST(rs485, test_characters_without_a_pause_come_as_one)
{
	uint64_t before = helio_now_ns();

	hear("first ", 6);
	hear("second", 6);
	zassert_equal(read(), 12);
	zassert_mem_equal(got, "first second", 12);
	zassert_equal(is_break, 0);
	zassert_true(end_ns >= before && end_ns <= helio_now_ns());
	zassert_equal(read(), -EAGAIN);
}

ZTEST(rs485, test_a_pause_separates_and_each_keeps_its_own_end)
{
	hear("one", 3);
	k_sleep(K_MSEC(5));
	hear("other", 5);
	zassert_equal(read(), 3);
	zassert_mem_equal(got, "one", 3);

	uint64_t first = end_ns;

	zassert_equal(read(), 5);
	zassert_mem_equal(got, "other", 5);
	zassert_true(end_ns - first > 4 * NSEC_PER_MSEC);
}

ZTEST(rs485, test_what_does_not_fit_the_reader_is_not_lost)
{
	hear("abcdefgh", 8);
	zassert_equal(helio_rs485_read(0, got, 5, &end_ns, &is_break), 5);
	zassert_mem_equal(got, "abcde", 5);
	zassert_equal(read(), 3);
	zassert_mem_equal(got, "fgh", 3);
}

ZTEST(rs485, test_zeros_after_a_pause_are_a_break)
{
	hear("\0\0", 2);
	zassert_equal(read(), 2);
	zassert_equal(is_break, 1);
}

ZTEST(rs485, test_zeros_at_the_end_of_a_frame_are_no_break)
{
	hear("frame", 5);
	zassert_equal(read(), 5);
	hear("\0\0\0\0", 4);
	zassert_equal(read(), 4);
	zassert_equal(is_break, 0, "the line was not silent before");
}

ZTEST(rs485, test_a_single_zero_is_no_break)
{
	hear("\0", 1);
	zassert_equal(read(), 1);
	zassert_equal(is_break, 0);
}

ZTEST(rs485, test_a_frame_goes_out_whole)
{
	zassert_ok(helio_rs485_send(0, "hello", 5));
	k_sleep(K_MSEC(2));
	zassert_equal(said_count, 5, "%d", (int)said_count);
	zassert_mem_equal(said, "hello", 5);
}

ZTEST(rs485, test_the_driver_is_off_when_all_is_said)
{
	const struct device *pins = DEVICE_DT_GET(DT_NODELABEL(pins));

	zassert_ok(helio_rs485_send(0, "hello", 5));
	k_sleep(K_MSEC(2));
	zassert_equal(gpio_emul_output_get(pins, 0), 0);
}

ZTEST(rs485, test_a_break_is_zeros_for_as_long)
{
	zassert_ok(helio_rs485_send_break(0, 60));
	k_sleep(K_MSEC(2));
	zassert_equal(said_count, 60 * (CONFIG_HELIO_BUS_BITRATE / 1000000) / 10, "%d",
		      (int)said_count);
	for (size_t i = 0; i < said_count; i++) {
		zassert_equal(said[i], 0);
	}
}

ZTEST(rs485, test_what_one_bus_hears_the_other_does_not)
{
	hear("one", 3);
	zassert_equal(uart_emul_put_rx_data(other, "two", 3), 3);
	k_sleep(K_USEC(200));
	zassert_equal(read_from(1), 3);
	zassert_mem_equal(got, "two", 3);
	zassert_equal(read_from(1), -EAGAIN);
	zassert_equal(read(), 3);
	zassert_mem_equal(got, "one", 3);
}

ZTEST(rs485, test_each_bus_sends_for_itself_with_its_own_driver)
{
	const struct device *pins = DEVICE_DT_GET(DT_NODELABEL(pins));

	/* Before the emulator's interrupt, which is a thread. */
	k_sched_lock();
	int first = helio_rs485_send(1, "other", 5);
	int again = helio_rs485_send(1, "late", 4);
	bool drives = gpio_emul_output_get(pins, 7), drives_here = gpio_emul_output_get(pins, 0);
	int here = helio_rs485_send(0, "here", 4);

	k_sched_unlock();
	zassert_ok(first);
	zassert_ok(here);
	if (!IS_ENABLED(CONFIG_ARCH_POSIX)) {
		zassert_equal(again, -EBUSY);
		zassert_true(drives);
	}
	zassert_false(drives_here);
	k_sleep(K_MSEC(2));
	zassert_equal(said_elsewhere, IS_ENABLED(CONFIG_ARCH_POSIX) ? 9 : 5);
	zassert_equal(said_count, 4);
	zassert_mem_equal(said, "here", 4);
	zassert_equal(gpio_emul_output_get(pins, 7), 0);
}

ZTEST(rs485, test_nothing_and_too_much_are_refused)
{
	static const uint8_t much[129];

	zassert_equal(helio_rs485_send(0, much, 0), -EINVAL);
	zassert_equal(helio_rs485_send(0, much, sizeof(much)), -EINVAL);
}

ZTEST(rs485, test_a_reader_who_sleeps_loses_and_learns_how_much)
{
	static uint8_t flood[400];
	uint32_t before = helio_rs485_lost(0);

	for (int i = 0; i < 4; i++) {
		memset(flood, 'a' + i, sizeof(flood));
		hear(flood, sizeof(flood));
		k_sleep(K_MSEC(2));
	}
	zassert_equal(helio_rs485_lost(0) - before, 4 * 400 - 1024);
	silence(NULL);
	hear("alive", 5);
	zassert_equal(read(), 5);
	zassert_mem_equal(got, "alive", 5);
}
