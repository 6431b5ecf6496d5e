/* SPDX-License-Identifier: Apache-2.0 */
#include <zephyr/drivers/pwm/pwm_fake.h>
#include <zephyr/fff.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

DEFINE_FFF_GLOBALS;

ZTEST_SUITE(pwm, NULL, NULL, NULL, NULL, NULL);

static void expect(int call, uint32_t channel, uint32_t period, uint32_t pulse)
{
	zassert_equal(fake_pwm_set_cycles_fake.arg1_history[call], channel);
	zassert_equal(fake_pwm_set_cycles_fake.arg2_history[call], period);
	zassert_equal(fake_pwm_set_cycles_fake.arg3_history[call], pulse);
}

ZTEST(pwm, test_each_luminaire_has_its_channel_and_period)
{
	zassert_ok(helio_luminaires_set(0x2));
	zassert_equal(fake_pwm_set_cycles_fake.call_count, 2);
	/* 1 ms and 2 ms at 1 MHz. */
	expect(0, 4, 1000, 0);
	expect(1, 6, 2000, 2000);
}

ZTEST(pwm, test_a_luminaire_that_does_not_follow_is_told)
{
	fake_pwm_set_cycles_fake.return_val = -EIO;
	zassert_equal(helio_luminaires_set(0x1), -EIO);
	zassert_equal(fake_pwm_set_cycles_fake.call_count, 2, "the other one was not forgotten");
}
