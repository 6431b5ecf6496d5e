/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include <zephyr/drivers/serial/uart_emul.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static const struct device *const line = DEVICE_DT_GET(DT_NODELABEL(clients));
static uint8_t got[512];

static void *setup(void)
{
	zassert_ok(helio_northbound_start());
	return NULL;
}

ZTEST_SUITE(northbound, NULL, setup, NULL, NULL, NULL);

ZTEST(northbound, test_what_a_client_says_is_read_once)
{
	uart_emul_put_rx_data(line, "question\n", 9);
	k_sleep(K_MSEC(1));
	zassert_equal(helio_northbound_read(got, 4), 4);
	zassert_equal(helio_northbound_read(got + 4, sizeof(got) - 4), 5);
	zassert_mem_equal(got, "question\n", 9);
	zassert_equal(helio_northbound_read(got, sizeof(got)), 0);
}

ZTEST(northbound, test_an_answer_goes_out_whole_and_in_order)
{
	zassert_ok(helio_northbound_write("one ", 4));
	zassert_ok(helio_northbound_write("answer\n", 7));
	k_sleep(K_MSEC(5));
	zassert_equal(uart_emul_get_tx_data(line, got, sizeof(got)), 11);
	zassert_mem_equal(got, "one answer\n", 11);
}

ZTEST(northbound, test_an_answer_without_room_is_refused_whole)
{
	static const uint8_t much[CONFIG_HELIO_NORTHBOUND_TX_SIZE + 1];

	zassert_equal(helio_northbound_write(much, sizeof(much)), -EBUSY);
	k_sleep(K_MSEC(5));
	zassert_equal(uart_emul_get_tx_data(line, got, sizeof(got)), 0);
}

ZTEST(northbound, test_more_than_there_is_room_for_does_not_stop_the_line)
{
	static uint8_t flood[2000];

	memset(flood, 'x', sizeof(flood));
	uart_emul_put_rx_data(line, flood, sizeof(flood));
	k_sleep(K_MSEC(20));

	size_t all = 0, count;

	while ((count = helio_northbound_read(got, sizeof(got))) > 0) {
		all += count;
	}
	zassert_true(all >= CONFIG_HELIO_NORTHBOUND_RX_SIZE - 32 && all <= sizeof(flood));
	uart_emul_put_rx_data(line, "alive", 5);
	k_sleep(K_MSEC(1));
	zassert_equal(helio_northbound_read(got, sizeof(got)), 5);
}
