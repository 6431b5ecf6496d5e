/* SPDX-License-Identifier: Apache-2.0 */
/* A controller that goes off the bus, played by Zephyr's fake. */
#include <zephyr/drivers/can.h>
#include <zephyr/drivers/can/can_fake.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static const struct device *const can = DEVICE_DT_GET(DT_NODELABEL(controller));
DEFINE_FFF_GLOBALS;

static enum can_state state;

static int capabilities(const struct device *dev, can_mode_t *modes)
{
	ARG_UNUSED(dev);
	*modes = CAN_MODE_MANUAL_RECOVERY | CAN_MODE_FD;
	return 0;
}

static int tell_state(const struct device *dev, enum can_state *to, struct can_bus_err_cnt *count)
{
	ARG_UNUSED(dev);
	*to = state;
	if (count != NULL) {
		*count = (struct can_bus_err_cnt){.tx_err_cnt = state == CAN_STATE_BUS_OFF ? 255 : 0};
	}
	return 0;
}

static void become(enum can_state next)
{
	state = next;
	fake_can_set_state_change_callback_fake.arg1_val(
		can, state, (struct can_bus_err_cnt){0},
		fake_can_set_state_change_callback_fake.arg2_val);
}

/* A real one is error-active again, too, as soon as it has heard the bus idle. */
static int recover(const struct device *dev, k_timeout_t timeout)
{
	ARG_UNUSED(dev);
	ARG_UNUSED(timeout);
	become(CAN_STATE_ERROR_ACTIVE);
	return 0;
}

/* Sends a frame, which goes out, or not. */
static void send(int error)
{
	zassert_ok(helio_can_send(0, 0, 1, 0, "x", 1));
	fake_can_send_fake.arg3_val(can, error, fake_can_send_fake.arg4_val);
}

static void start(void *unused)
{
	ARG_UNUSED(unused);
	fake_can_get_capabilities_fake.custom_fake = capabilities;
	fake_can_get_state_fake.custom_fake = tell_state;
	fake_can_recover_fake.custom_fake = recover;
	state = CAN_STATE_ERROR_ACTIVE;
	zassert_ok(helio_can_start(0, 1000000, 1, 0, 0));
	send(0);
}

ZTEST_SUITE(busoff, NULL, NULL, start, NULL, NULL);

/* Off the bus, and back after that pause and no sooner. */
static void off_for(uint32_t pause_ms)
{
	uint32_t before = fake_can_recover_fake.call_count;

	uint64_t due_ns = helio_now_ns() + pause_ms * NSEC_PER_MSEC;

	become(CAN_STATE_BUS_OFF);
	zassert_equal(helio_can_state(0) & 0xffff, CAN_STATE_BUS_OFF | 255 << 8);
	while (helio_now_ns() + 2 * NSEC_PER_MSEC < due_ns) {
		zassert_ok(helio_can_tend(0));
		k_sleep(K_MSEC(1));
	}
	zassert_equal(fake_can_recover_fake.call_count, before, "back within %u ms", pause_ms);
	k_sleep(K_MSEC(3));
	zassert_ok(helio_can_tend(0));
	zassert_equal(fake_can_recover_fake.call_count, before + 1, "not back after %u ms", pause_ms);
}

ZTEST(busoff, test_recovery_is_ours_and_not_the_controller_s)
{
	zassert_true(fake_can_set_mode_fake.arg1_val & CAN_MODE_MANUAL_RECOVERY);
}

ZTEST(busoff, test_the_pause_doubles_with_each_time_in_a_row_up_to_a_second)
{
	uint32_t before = helio_can_recoveries(0);

	for (uint32_t pause_ms = 10; pause_ms < 1000; pause_ms *= 2) {
		off_for(pause_ms);
		send(-EIO);
	}
	off_for(1000);
	off_for(1000);
	zassert_equal(helio_can_recoveries(0) - before, 9);
}

ZTEST(busoff, test_a_frame_that_went_out_ends_the_row)
{
	off_for(10);
	off_for(20);
	send(0);
	off_for(10);
}

ZTEST(busoff, test_a_recovery_that_takes_its_time_is_no_error)
{
	fake_can_recover_fake.custom_fake = NULL;
	fake_can_recover_fake.return_val = -EAGAIN;
	become(CAN_STATE_BUS_OFF);
	k_sleep(K_MSEC(11));
	zassert_ok(helio_can_tend(0));
	fake_can_recover_fake.return_val = -EIO;
	k_sleep(K_MSEC(21));
	zassert_equal(helio_can_tend(0), -EIO);
}
