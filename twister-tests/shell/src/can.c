/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include <zephyr/drivers/can.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static const struct device *const controllers[] = {
	DEVICE_DT_GET(DT_NODELABEL(controller)),
	DEVICE_DT_GET(DT_NODELABEL(other_controller)),
};

static uint32_t id, flags;
static uint8_t data[64];
static uint64_t at_ns;

static int receive_from(uint32_t bus)
{
	return helio_can_receive(bus, &id, &flags, data, &at_ns);
}

static int receive(void)
{
	return receive_from(0);
}

/* Each on its bus, and hearing what it says itself, since it is alone. */
static void *setup(void)
{
	for (uint32_t bus = 0; bus < ARRAY_SIZE(controllers); bus++) {
		zassert_ok(helio_can_start(bus, 1000000, 1, 0, 0));
		zassert_ok(can_stop(controllers[bus]));
		zassert_ok(can_set_mode(controllers[bus], CAN_MODE_LOOPBACK | CAN_MODE_FD));
		zassert_ok(can_start(controllers[bus]));
	}
	return NULL;
}

static void drain(void *unused)
{
	ARG_UNUSED(unused);
	k_sleep(K_MSEC(5));
	while (receive() >= 0 || receive_from(1) >= 0) {
	}
	(void)helio_can_mailboxes(0);
	(void)helio_can_mailboxes(1);
}

ZTEST_SUITE(can, NULL, setup, drain, NULL, NULL);

ZTEST(can, test_a_quiet_bus_has_nothing)
{
	zassert_equal(receive(), -EAGAIN);
	zassert_equal(helio_can_mailboxes(0), 0);
}

ZTEST(can, test_a_classic_frame_comes_as_it_went)
{
	zassert_ok(helio_can_send(0, 0, 0x123, 0, "12345678", 8));
	k_sleep(K_MSEC(2));
	zassert_equal(receive(), 8);
	zassert_equal(id, 0x123);
	zassert_equal(flags, 0);
	zassert_mem_equal(data, "12345678", 8);
	zassert_true(at_ns <= helio_now_ns());
}

ZTEST(can, test_an_extended_identifier_is_told_from_a_standard_one)
{
	zassert_ok(helio_can_send(0, 2, 0x123, 1, "", 0));
	k_sleep(K_MSEC(2));
	zassert_equal(receive(), 0);
	zassert_equal(id, 0x123);
	zassert_equal(flags, 1);
}

ZTEST(can, test_an_fd_frame_carries_64_bytes)
{
	uint8_t much[64];

	for (int i = 0; i < 64; i++) {
		much[i] = i * 3;
	}
	zassert_ok(helio_can_send(0, 1, 0x7ff, 2, much, sizeof(much)));
	k_sleep(K_MSEC(2));
	zassert_equal(receive(), 64);
	zassert_equal(flags, 2);
	zassert_mem_equal(data, much, sizeof(much));
}

ZTEST(can, test_each_mailbox_is_confirmed_once)
{
	zassert_ok(helio_can_send(0, 0, 1, 0, "a", 1));
	zassert_ok(helio_can_send(0, 1, 2, 0, "b", 1));
	zassert_ok(helio_can_send(0, 2, 3, 1, "c", 1));
	zassert_ok(helio_can_send(0, 3, 0, 0, "", 0));
	k_sleep(K_MSEC(5));
	zassert_equal(helio_can_mailboxes(0), 0xf);
	zassert_equal(helio_can_mailboxes(0), 0);
}

ZTEST(can, test_a_full_mailbox_is_refused)
{
	/* Both calls before the controller's thread has a chance. */
	k_sched_lock();
	int first = helio_can_send(0, 1, 2, 0, "b", 1);
	int second = helio_can_send(0, 1, 3, 0, "c", 1);
	uint32_t bits = helio_can_mailboxes(0);

	k_sched_unlock();
	zassert_ok(first);
	zassert_equal(second, -EBUSY);
	zassert_equal(bits, 0x20000);
}

ZTEST(can, test_what_one_bus_says_the_other_does_not_hear)
{
	zassert_ok(helio_can_send(1, 2, 0x321, 0, "there", 5));
	zassert_ok(helio_can_send(0, 3, 0x123, 0, "here", 4));
	k_sleep(K_MSEC(2));
	zassert_equal(receive(), 4);
	zassert_equal(id, 0x123);
	zassert_equal(receive(), -EAGAIN);
	zassert_equal(receive_from(1), 5);
	zassert_equal(id, 0x321);
	zassert_equal(receive_from(1), -EAGAIN);
	zassert_equal(helio_can_mailboxes(0), BIT(3));
	zassert_equal(helio_can_mailboxes(1), BIT(2));
}

ZTEST(can, test_a_full_mailbox_of_one_bus_is_free_on_the_other)
{
	k_sched_lock();
	int first = helio_can_send(0, 1, 2, 0, "b", 1);
	int second = helio_can_send(1, 1, 3, 0, "c", 1);
	uint32_t bits = helio_can_mailboxes(1);

	k_sched_unlock();
	zassert_ok(first);
	zassert_ok(second);
	zassert_equal(bits, 0x20000);
}

ZTEST(can, test_what_no_mailbox_takes_is_refused)
{
	zassert_equal(helio_can_send(0, 4, 1, 0, "a", 1), -EINVAL);
	zassert_equal(helio_can_send(0, 0, 1, 2, data, 65), -EINVAL);
}

ZTEST(can, test_a_controller_on_the_bus_is_error_active_and_needs_no_help)
{
	zassert_equal(helio_can_state(0) & 0xff, CAN_STATE_ERROR_ACTIVE);
	zassert_ok(helio_can_tend(0));
	zassert_equal(helio_can_recoveries(0), 0);
}

ZTEST(can, test_a_reader_who_sleeps_loses_and_learns_how_much)
{
	uint32_t before = helio_can_lost(0);

	for (int i = 0; i < 70; i++) {
		while (helio_can_send(0, 1, i, 0, "x", 1) == -EBUSY) {
			k_sleep(K_USEC(200));
		}
		k_sleep(K_USEC(200));
	}
	k_sleep(K_MSEC(5));
	zassert_equal(helio_can_lost(0) - before, 70 - HELIO_CAN_RING);
	zassert_equal(receive(), 1);
	zassert_equal(id, 0, "the oldest comes first");
}
