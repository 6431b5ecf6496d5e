/* SPDX-License-Identifier: Apache-2.0 */
#include <zephyr/drivers/gpio/gpio_emul.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static const struct device *const pins = DEVICE_DT_GET(DT_NODELABEL(pins));

static int level(gpio_pin_t pin)
{
	return gpio_emul_output_get(pins, pin);
}

static void start(void *unused)
{
	ARG_UNUSED(unused);
	zassert_ok(helio_node_init());
}

ZTEST_SUITE(node, NULL, NULL, start, NULL, NULL);

ZTEST(node, test_everything_is_off_after_the_start)
{
	zassert_equal(level(1), 0, "gate");
	zassert_equal(level(2), 0, "bleed 0");
	zassert_equal(level(3), 1, "bleed 1 is active low");
	zassert_equal(level(5), 0, "luminaire 0");
}

ZTEST(node, test_the_gate_follows)
{
	zassert_ok(helio_gate_set(1));
	zassert_equal(level(1), 1);
	zassert_ok(helio_gate_set(0));
	zassert_equal(level(1), 0);
}

ZTEST(node, test_each_cell_has_its_bleed_resistor)
{
	zassert_ok(helio_balance_set(0x2));
	zassert_equal(level(2), 0);
	zassert_equal(level(3), 0, "active low");
	zassert_equal(level(4), 0);
	zassert_ok(helio_balance_set(0x5));
	zassert_equal(level(2), 1);
	zassert_equal(level(3), 1, "active low");
	zassert_equal(level(4), 1);
}

#if !DT_NODE_HAS_PROP(HELIO_NODE, pwms)
ZTEST(node, test_bits_without_an_output_are_harmless)
{
	zassert_ok(helio_luminaires_set(0xffff));
	zassert_equal(level(5), 1);
	zassert_equal(level(6), 1);
	zassert_equal(level(8), 0, "no luminaire");
}
#endif

ZTEST(node, test_the_configured_unique_id_is_taken)
{
	zassert_equal(helio_uid(), 0x123456789abcdef0ULL);
}

ZTEST(node, test_a_node_without_watchdog_says_so)
{
	zassert_equal(helio_watchdog_start(100), -ENODEV);
}
