/* SPDX-License-Identifier: Apache-2.0 */
#include <zephyr/drivers/adc/adc_emul.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static const struct device *const sense = DEVICE_DT_GET(DT_NODELABEL(sense));

static void *setup(void)
{
	zassert_ok(helio_adc_start());
	return NULL;
}

ZTEST_SUITE(adc, NULL, setup, NULL, NULL, NULL);

ZTEST(adc, test_millivolts_are_those_at_the_pin)
{
	static const uint32_t at_pin[] = {0, 1, 1650, 3299};

	for (size_t i = 0; i < ARRAY_SIZE(at_pin); i++) {
		int32_t mv = -1;

		zassert_ok(adc_emul_const_value_set(sense, 0, at_pin[i]));
		zassert_ok(helio_adc_read_mv(&mv));
		/* 0.8 mV per step, rounded down twice. */
		zassert_within(mv, (int32_t)at_pin[i], 2, "%d for %u", mv, at_pin[i]);
	}
}

ZTEST(adc, test_what_is_above_the_reference_reads_as_the_highest)
{
	int32_t mv = -1;

	zassert_ok(adc_emul_const_value_set(sense, 0, 5000));
	zassert_ok(helio_adc_read_mv(&mv));
	zassert_within(mv, 3299, 2, "%d", mv);
}
